//! The rows of a matrix product: what a Conv, Gemm or MatMul multiplies its weights with, at sampled positions.
//! Knows nothing of codes.

use crate::engine::graph::Node;
use crate::engine::graph::op::{Op, Sliding};
use crate::engine::graph::reach::Reach;
use crate::engine::graph::shapes::windows;
use crate::engine::tensor::{Element, Tensor};

/// A layer as a product: `y[row, n] = Σ_k x[row, k] · w[n, k]`, apart for each group of channels.
#[derive(Clone, Debug)]
pub struct Geometry {
    /// Groups of channels that have weights of their own.
    pub groups: usize,
    /// Outputs of a group.
    pub outputs: usize,
    /// Terms of a sum.
    pub terms: usize,
    form: Form,
}

#[derive(Clone, Debug)]
enum Form {
    /// `[N, C, spatial…]`, with a kernel.
    Windows { sliding: Box<Sliding>, kernel: Vec<usize> },
    /// `[…, K]`, with weights `[K, N]` or `[N, K]`.
    Matrix { transposed: bool },
}

impl Geometry {
    /// The form of a node with weights of this shape; `None` for others than Conv, Gemm and MatMul.
    pub fn of(node: &Node, weights: &[usize]) -> Option<Geometry> {
        match (&node.op, weights) {
            (Op::Conv { groups, sliding }, [outputs, inner, kernel @ ..]) => Some(Geometry {
                groups: *groups,
                outputs: outputs / groups,
                terms: inner * kernel.iter().product::<usize>(),
                form: Form::Windows { sliding: Box::new(sliding.clone()), kernel: kernel.to_vec() },
            }),
            (Op::Gemm { trans_b, .. }, &[a, b]) => {
                let (outputs, terms) = if *trans_b { (a, b) } else { (b, a) };
                Some(Geometry { groups: 1, outputs, terms, form: Form::Matrix { transposed: *trans_b } })
            }
            (Op::MatMul, &[terms, outputs]) => {
                Some(Geometry { groups: 1, outputs, terms, form: Form::Matrix { transposed: false } })
            }
            _ => None,
        }
    }

    /// Where weight `k` of output `n` of a group lies in the tensor of weights.
    pub fn place(&self, group: usize, n: usize, k: usize) -> usize {
        match self.form {
            Form::Windows { .. } | Form::Matrix { transposed: true } => {
                (group * self.outputs + n) * self.terms + k
            }
            Form::Matrix { transposed: false } => k * self.outputs + n,
        }
    }

    /// Number of rows that an operand has.
    pub fn rows(&self, x: &Tensor) -> usize {
        match &self.form {
            Form::Windows { .. } => {
                let reach = self.reach(x);
                reach.map_or(0, |reach| x.shape()[0] * reach.windows())
            }
            Form::Matrix { .. } => x.len() / self.terms.max(1),
        }
    }

    fn reach(&self, x: &Tensor) -> Option<Reach> {
        let Form::Windows { sliding, kernel } = &self.form else { return None };
        let spatial = x.shape().get(2..)?;
        let windows = windows(sliding, spatial, kernel).ok()?;
        Some(Reach::new(&windows, spatial))
    }

    /// Rows of an operand for some groups from `group` on, to `out`: `[rows, groups · terms]`. What `real` makes of the
    /// place in `rows` and an element stands there; taps in pads stand for `pad`.
    pub fn gather<T: Element>(
        &self,
        x: &Tensor,
        rows: &[usize],
        (group, groups): (usize, usize),
        pad: T,
        out: &mut [f32],
        real: impl Fn(usize, T) -> f32,
    ) {
        let width = (groups * self.terms).max(1);
        let (data, to) = (x.slice::<T>(), rows.iter().zip(out.chunks_exact_mut(width)).enumerate());
        match &self.form {
            Form::Matrix { .. } => {
                for (i, (row, to)) in to {
                    let from = &data[row * self.terms..][..self.terms];
                    to.iter_mut().zip(from).for_each(|(to, &x)| *to = real(i, x));
                }
            }
            Form::Windows { kernel, .. } => {
                let Some(reach) = self.reach(x) else { return };
                let (channels, area) = (x.shape()[1], x.shape()[2..].iter().product::<usize>());
                let taps: usize = kernel.iter().product();
                let inner = self.terms / taps.max(1);
                for (i, (row, to)) in to {
                    if taps > 1 {
                        to.fill(real(i, pad));
                    }
                    let (image, window) = (row / reach.windows(), row % reach.windows());
                    let index = reach.index(window);
                    let first = image * channels + group * inner;
                    let image = &data[first * area..][..groups * inner * area];
                    reach.for_each(&index, kernel, |tap, element| {
                        let of_tap = to[tap..].iter_mut().step_by(taps);
                        let elements = image[element..].iter().step_by(area);
                        of_tap.zip(elements).for_each(|(to, &x)| *to = real(i, x));
                    });
                }
            }
        }
    }
}

/// At most `wanted` of `count` positions, spread evenly, one at random within each equal share: a grid of its own would
/// fall in step with the rows of an image. The same for the same numbers.
pub fn spread(count: usize, wanted: usize) -> Vec<usize> {
    if count <= wanted {
        return (0..count).collect();
    }
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let place = |i: usize| {
        let (from, to) = (i * count / wanted, (i + 1) * count / wanted);
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        from + (state >> 33) as usize % (to - from).max(1)
    };
    (0..wanted).map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(op: Op) -> Node {
        Node::new("n".to_owned(), op, Vec::new(), Vec::new())
    }

    #[test]
    fn a_row_holds_the_taps_of_a_window() {
        let sliding = Sliding { pads: vec![0, 1, 0, 1], ..Sliding::default() };
        let conv = Geometry::of(&node(Op::Conv { sliding, groups: 2 }), &[2, 1, 1, 3]).unwrap();
        assert_eq!((conv.groups, conv.outputs, conv.terms), (2, 1, 3));
        let x = Tensor::from_slice(&[1, 2, 1, 3], &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(conv.rows(&x), 3);
        let mut got = [9f32; 12];
        conv.gather(&x, &[0, 2], (0, 2), 0f32, &mut got, |_, x: f32| x);
        assert_eq!(got, [0., 1., 2., 0., 4., 5., 2., 3., 0., 5., 6., 0.]);
        conv.gather(&x, &[1, 0], (1, 1), 1f32, &mut got[..6], |row, x: f32| x + 10.0 * row as f32);
        assert_eq!(got[..6], [4., 5., 6., 11., 14., 15.]);
        assert_eq!(conv.place(1, 0, 2), 5);
    }

    #[test]
    fn a_matrix_has_its_own_rows() {
        let x = Tensor::from_slice(&[2, 2, 2], &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        let matmul = Geometry::of(&node(Op::MatMul), &[2, 5]).unwrap();
        assert_eq!((matmul.rows(&x), matmul.place(0, 3, 1)), (4, 8));
        let mut got = [0f32; 2];
        matmul.gather(&x, &[3], (0, 1), 0f32, &mut got, |_, x: f32| x);
        assert_eq!(got, [7., 8.]);
        let op = Op::Gemm { alpha: 1.0, beta: 1.0, trans_a: false, trans_b: true };
        let gemm = Geometry::of(&node(op), &[5, 2]).unwrap();
        assert_eq!((gemm.outputs, gemm.place(0, 3, 1)), (5, 7));
    }

    #[test]
    fn positions_are_spread_over_all_of_them() {
        assert_eq!(spread(3, 5), [0, 1, 2]);
        let some = spread(1000, 10);
        assert!(some.iter().enumerate().all(|(i, &p)| (100 * i..100 * (i + 1)).contains(&p)), "{some:?}");
    }
}
