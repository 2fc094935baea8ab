//! QuantizeLinear and DequantizeLinear by the definition, for scales of every granularity: one for a tensor, one for
//! each index of an axis, one a block of an axis.

use super::qparams::code_range;
use super::{DType, Tensor, TensorView};

/// Which scale each element of a tensor has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// Length of the axis that the scales run along; 1 where one scale serves all.
    length: usize,
    /// Elements that one step along the axis spans.
    inner: usize,
    /// Indices along the axis that share a scale.
    block: usize,
    /// Scales along the axis.
    blocks: usize,
    /// Whether the axes after the one in blocks have scales of their own.
    by_inner: bool,
}

impl Spread {
    /// The granularity that the shapes of a tensor and of its scales tell; `block` is 0 where there are no blocks.
    ///
    /// # Errors
    /// A sentence where they do not fit.
    pub fn new(x: &[usize], scale: &[usize], axis: i64, block: usize) -> Result<Spread, String> {
        let count: usize = scale.iter().product();
        let one = Spread { length: 1, inner: 1, block: 1, blocks: 1, by_inner: false };
        if block == 0 && count == 1 && scale.len() <= 1 {
            return Ok(one);
        }
        let rank = x.len() as i64;
        let from_front = if axis < 0 { axis.saturating_add(rank) } else { axis };
        let misfit =
            || format!("scales of shape {scale:?} do not fit a tensor of shape {x:?} on axis {axis}");
        let at = usize::try_from(from_front).ok().filter(|&a| a < x.len()).ok_or_else(misfit)?;
        let (length, inner) = (x[at], x[at + 1..].iter().product());
        if block == 0 {
            return match scale == [length] {
                true => Ok(Spread { length, inner, block: 1, blocks: length, by_inner: false }),
                false => Err(misfit()),
            };
        }
        let blocks = length.div_ceil(block);
        let mut want = x.to_vec();
        want[at] = blocks;
        match scale == want {
            true => Ok(Spread { length, inner, block, blocks, by_inner: true }),
            false => Err(format!("{} of {block}", misfit())),
        }
    }

    /// Index of the scale of element `i`.
    #[inline]
    pub fn at(&self, i: usize) -> usize {
        let (row, column) = (i / self.inner.max(1), i % self.inner.max(1));
        let (outer, index) = (row / self.length.max(1), row % self.length.max(1));
        match self.by_inner {
            true => (outer * self.blocks + index / self.block) * self.inner + column,
            false => index,
        }
    }
}

/// `saturate(round_half_even(x / scale) + zero_point)` of type `to`, in f32; not-a-number counts as 0.
#[inline]
pub fn code_of(x: f32, scale: f32, zero_point: i32, to: DType) -> i32 {
    let (lo, hi) = code_range(to);
    let scaled = x / scale;
    let rounded = if scaled.is_nan() { 0 } else { scaled.round_ties_even() as i64 };
    rounded.saturating_add(i64::from(zero_point)).clamp(lo, hi) as i32
}

/// The codes of `x`.
pub fn quantize(x: &[f32], scale: &[f32], zero_point: &[i32], spread: Spread, to: DType) -> Vec<i32> {
    let code = |(i, &x): (usize, &f32)| {
        let s = spread.at(i);
        code_of(x, scale[s], zero_point.get(s).copied().unwrap_or(0), to)
    };
    x.iter().enumerate().map(code).collect()
}

/// What the codes stand for: `(code − zero_point) as f32 · scale`.
pub fn dequantize(codes: &[i32], scale: &[f32], zero_point: &[i32], spread: Spread) -> Vec<f32> {
    let real = |(i, &code): (usize, &i32)| {
        let s = spread.at(i);
        code.wrapping_sub(zero_point.get(s).copied().unwrap_or(0)) as f32 * scale[s]
    };
    codes.iter().enumerate().map(real).collect()
}

/// The codes of a tensor as numbers.
///
/// # Errors
/// A sentence where it does not hold codes.
pub fn codes(x: &TensorView<'_>) -> Result<Vec<i32>, String> {
    Ok(match x.dtype {
        DType::U8 => x.slice::<u8>().iter().map(|&q| q.into()).collect(),
        DType::I8 => x.slice::<i8>().iter().map(|&q| q.into()).collect(),
        DType::U16 => x.slice::<u16>().iter().map(|&q| q.into()).collect(),
        DType::I16 => x.slice::<i16>().iter().map(|&q| q.into()).collect(),
        DType::I32 => x.slice::<i32>().to_vec(),
        other => return Err(format!("codes of type {other} are not supported")),
    })
}

/// Codes as a tensor of `dtype`, which holds them.
pub fn tensor_of_codes(dtype: DType, shape: &[usize], codes: &[i32]) -> Tensor {
    macro_rules! cast {
        ($t:ty) => {
            Tensor::from_slice(shape, &codes.iter().map(|&q| q as $t).collect::<Vec<$t>>())
        };
    }
    match dtype {
        DType::U8 => cast!(u8),
        DType::I8 => cast!(i8),
        DType::U16 => cast!(u16),
        DType::I16 => cast!(i16),
        _ => cast!(i32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(x: &[usize], scale: &[usize], axis: i64, block: usize, want: &[usize]) {
        let spread = Spread::new(x, scale, axis, block).expect("they fit");
        let all: Vec<usize> = (0..x.iter().product()).map(|i| spread.at(i)).collect();
        assert_eq!(all, want, "{x:?} {scale:?} axis {axis} block {block}");
    }

    #[test]
    fn each_element_finds_its_scale() {
        check(&[2, 2], &[], 7, 0, &[0; 4]);
        check(&[2, 2], &[1], 7, 0, &[0; 4]);
        check(&[2, 3, 2], &[3], -2, 0, &[0, 0, 1, 1, 2, 2, 0, 0, 1, 1, 2, 2]);
        check(&[2, 3, 2], &[2, 2, 2], 1, 2, &[0, 1, 0, 1, 2, 3, 4, 5, 4, 5, 6, 7]);
        check(&[4], &[2], 0, 2, &[0, 0, 1, 1]);
        for (x, scale, axis, block) in
            [(&[2, 3][..], &[2][..], 1, 0), (&[2, 3], &[3], 2, 0), (&[2, 3], &[2, 1], 1, 2)]
        {
            assert!(Spread::new(x, scale, axis, block).is_err(), "{x:?} {scale:?}");
        }
    }

    #[test]
    fn codes_saturate_and_ties_go_to_even() {
        let codes =
            [0.5, 1.5, -2.5, 400.0, f32::NEG_INFINITY, f32::NAN].map(|x| code_of(x, 1.0, 3, DType::I8));
        assert_eq!(codes, [3, 5, 1, 127, -128, 3]);
    }
}
