//! Operators of linear algebra on small matrices: Det, and AffineGrid, the positions that an affine map reads.

use crate::engine::graph::fact::{Fact, Results, Unfit, constant_ints, needed};
use crate::engine::graph::operator::Operator;
use crate::engine::tensor::{DType, Tensor, TensorView};

use super::gather::integers;
use super::number::of_f64;
use super::real::given;
use super::{Entry, Made};

pub(super) const OPERATORS: &[Entry] = &[
    ("", "AffineGrid", |call| {
        Ok(Made::new(AffineGrid { align_corners: call.attributes.flag("align_corners", false)? }))
    }),
    ("", "Det", |_| Ok(Made::new(Det))),
];

/// `x [.., n, n]`: the determinant of each matrix.
#[derive(Debug)]
struct Det;

impl Operator for Det {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let x = needed(inputs, 0)?;
        let real = matches!(x.dtype, DType::F32 | DType::F64 | DType::F16 | DType::BF16);
        match &x.shape[..] {
            [before @ .., a, b] if a == b && real => Ok(vec![(x.dtype, before.to_vec())]),
            _ => Err(format!("{}{:?} is no square matrix of reals", x.dtype, x.shape).into()),
        }
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let x = given(inputs, 0)?;
        let [before @ .., n, _] = x.shape else { return Err("it is no matrix".to_owned()) };
        let mut made = vec![1.0; before.iter().product()];
        if *n > 0 {
            let mut values = x.to_f64();
            let matrices = values.chunks_exact_mut(n * n);
            made.iter_mut().zip(matrices).for_each(|(made, matrix)| *made = determinant(matrix, *n));
        }
        Ok(vec![of_f64(x.dtype, before, &made)?])
    }
}

/// By elimination with the largest pivot of each column; the matrix is used up.
fn determinant(matrix: &mut [f64], n: usize) -> f64 {
    let mut product = 1.0;
    for column in 0..n {
        let size = |row: &usize| matrix[row * n + column].abs();
        let pivot = (column..n).max_by(|a, b| size(a).total_cmp(&size(b))).unwrap_or(column);
        if pivot != column {
            product = -product;
            (0..n).for_each(|i| matrix.swap(pivot * n + i, column * n + i));
        }
        let (done, below) = matrix.split_at_mut((column + 1) * n);
        let top = &done[column * n..];
        product *= top[column];
        if top[column] == 0.0 {
            return 0.0;
        }
        for row in below.chunks_exact_mut(n) {
            let factor = row[column] / top[column];
            row[column..].iter_mut().zip(&top[column..]).for_each(|(x, t)| *x -= factor * t);
        }
    }
    product
}

/// `theta [n, d, d + 1], size [n, c, spatial..]`: for every place of the result its position in the source, from -1
/// to 1 on each axis; `[n, spatial.., d]`, x first.
#[derive(Debug)]
struct AffineGrid {
    align_corners: bool,
}

/// The lengths of the spatial axes.
fn spatial(theta: &[usize], size: &[i64]) -> Result<Vec<usize>, String> {
    let unfit = || format!("theta of shape {theta:?} does not fit the size {size:?}");
    let &[n, d, columns] = theta else { return Err(unfit()) };
    let fits = (d == 2 || d == 3) && columns == d + 1 && size.len() == d + 2 && size[0] == n as i64;
    let lengths = size.iter().skip(2).map(|&length| usize::try_from(length).ok()).collect::<Option<Vec<_>>>();
    lengths.filter(|_| fits).ok_or_else(unfit)
}

impl AffineGrid {
    fn position(&self, index: usize, length: usize) -> f64 {
        match self.align_corners {
            // Both ends at once: -1 as in the reference of the standard. ONNX Runtime has 1, PyTorch 0.
            true if length == 1 => -1.0,
            true => 2.0 * index as f64 / (length - 1) as f64 - 1.0,
            false => (2 * index + 1) as f64 / length as f64 - 1.0,
        }
    }
}

impl Operator for AffineGrid {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let theta = needed(inputs, 0)?;
        let lengths = spatial(&theta.shape, &constant_ints(inputs, 1, "size")?)?;
        if !matches!(theta.dtype, DType::F32 | DType::F64 | DType::F16 | DType::BF16) {
            return Err(format!("it takes real numbers, not {}", theta.dtype).into());
        }
        let shape = [&theta.shape[..1], &lengths, &theta.shape[1..2]].concat();
        Ok(vec![(theta.dtype, shape)])
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let (theta, size) = (given(inputs, 0)?, given(inputs, 1)?);
        let lengths = spatial(theta.shape, &integers(&size)?)?;
        let d = lengths.len();
        let places: usize = lengths.iter().product();
        let maps = theta.to_f64();
        let mut made = Vec::with_capacity(theta.shape[0] * places * d);
        let mut position = vec![1.0; d + 1];
        for map in maps.chunks_exact(d * (d + 1)) {
            for place in 0..places {
                let mut rest = place;
                // The last axis is x, which comes first.
                for (i, &length) in lengths.iter().rev().enumerate() {
                    position[i] = self.position(rest % length, length);
                    rest /= length;
                }
                made.extend(
                    map.chunks_exact(d + 1)
                        .map(|row| -> f64 { row.iter().zip(&position).map(|(a, b)| a * b).sum() }),
                );
            }
        }
        let shape = [&theta.shape[..1], &lengths, &[d]].concat();
        Ok(vec![of_f64(theta.dtype, &shape, &made)?])
    }

    fn opset(&self) -> i64 {
        20
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn determinants_are_those_of_the_book() {
        for (matrix, want) in [
            (vec![2.0f64], 2.0),
            (vec![0.0, 1.0, 1.0, 0.0], -1.0),
            (vec![1.0, 2.0, 2.0, 4.0], 0.0),
            (vec![2.0, 0.0, 1.0, 1.0, 3.0, 2.0, 1.0, 1.0, 4.0], 18.0),
        ] {
            let n = if matrix.len() == 9 { 3 } else { matrix.len().div_ceil(2) };
            let x = Tensor::from_slice(&[1, n, n], &matrix);
            let made = Det.run(&[Some(x.view())], 1).unwrap();
            assert!((made[0].slice::<f64>()[0] - want).abs() < 1e-12, "{matrix:?}");
        }
    }

    #[test]
    fn the_map_that_changes_nothing_gives_the_places_themselves() {
        let theta = Tensor::from_slice(&[1, 2, 3], &[1.0f32, 0.0, 0.0, 0.0, 1.0, 0.0]);
        let size = Tensor::from_slice(&[4], &[1i64, 1, 1, 2]);
        let of = |align_corners| {
            let made = AffineGrid { align_corners }.run(&[Some(theta.view()), Some(size.view())], 1).unwrap();
            made[0].slice::<f32>().to_vec()
        };
        assert_eq!(of(false), [-0.5, 0.0, 0.5, 0.0]);
        assert_eq!(of(true), [-1.0, -1.0, 1.0, -1.0]);
    }
}
