//! ConvTranspose: a product of weights and pixels, whose columns are windows that are laid over the result.

use std::sync::Arc;

use crate::engine::graph::fact::{Fact, Results, Unfit, needed, operand};
use crate::engine::graph::op::{AutoPad, Sliding};
use crate::engine::graph::operator::{Call, Operator, Other, Prepared};
use crate::engine::graph::shapes::Windows;
use crate::engine::tensor::{Tensor, TensorView};

use super::col2im::add_windows;
use super::product::{Product, zeros_fit};
use super::real::{elements, for_each_chunk, given, optional, reals, with_real};
use super::rearrange::blocks_of;
use super::{Entry, Made};

pub(super) const OPERATORS: &[Entry] = &[("", "ConvTranspose", conv_transpose)];

/// Elements of one product, so that it stays in the second-level cache.
const COLUMN_FLOATS: usize = 1 << 17;

/// Rows of one product, about: each row of weights reads all pixels, which are laid out anew for each product.
const PRODUCT_ROWS: usize = 64;

/// `x [N, C, …], weight [C, M / groups, …] [, bias [M]]`: `[N, M, …]`, each pixel adding its weights to a window.
#[derive(Clone, Debug)]
struct ConvTranspose {
    sliding: Sliding,
    groups: usize,
    output_padding: Vec<usize>,
    output_shape: Vec<usize>,
}

fn conv_transpose(call: &Call<'_>) -> Result<Made, String> {
    let a = call.attributes;
    let groups = a.int_or("group", 1)?;
    let groups = usize::try_from(groups).ok().filter(|&g| g > 0);
    Ok(Made::new(ConvTranspose {
        sliding: Sliding::read(a)?,
        groups: groups.ok_or("group is not positive")?,
        output_padding: a.sizes("output_padding")?.unwrap_or_default(),
        output_shape: a.sizes("output_shape")?.unwrap_or_default(),
    }))
}

/// Everything that follows from the shapes.
#[derive(Clone, Debug)]
struct Geometry {
    /// The windows are the pixels of the operand: `out` is its spatial shape.
    windows: Windows,
    /// Spatial shape of the result.
    spatial: Vec<usize>,
    /// `[N, C]` of the operand.
    batch: usize,
    inputs: usize,
    /// Channels of the result, of all groups.
    outputs: usize,
}

impl ConvTranspose {
    fn geometry(&self, x: &[usize], weight: &[usize]) -> Result<Geometry, String> {
        let misfit = || format!("input {x:?} and weight {weight:?} with {} group(s) do not fit", self.groups);
        if x.len() < 3 || weight.len() != x.len() || weight[0] != x[1] || !x[1].is_multiple_of(self.groups) {
            return Err(misfit());
        }
        let (axes, kernel) = (x.len() - 2, &weight[2..]);
        if weight[1] == 0 || x[1] == 0 || kernel.contains(&0) {
            return Err(misfit());
        }
        if !self.sliding.kernel.is_empty() && self.sliding.kernel != kernel {
            return Err(format!("kernel_shape {:?} does not fit weight {weight:?}", self.sliding.kernel));
        }
        let filled = |name: &str, given: &[usize], default: usize, want: usize| match given.len() {
            0 => Ok(vec![default; want]),
            n if n == want => Ok(given.to_vec()),
            n => Err(format!("`{name}` has {n} entries for {axes} spatial axes")),
        };
        let strides = filled("strides", &self.sliding.strides, 1, axes)?;
        let dilations = filled("dilations", &self.sliding.dilations, 1, axes)?;
        let pads = filled("pads", &self.sliding.pads, 0, 2 * axes)?;
        let more = filled("output_padding", &self.output_padding, 0, axes)?;
        // Some exporters write the whole shape, batch and channels included.
        let wanted = self.output_shape.get(self.output_shape.len().saturating_sub(axes)..).unwrap_or(&[]);
        let mut begin = vec![0; axes];
        let mut spatial = Vec::with_capacity(axes);
        for axis in 0..axes {
            let length = x[2 + axis];
            // Up to here no pads are taken away: the windows of all pixels, side by side.
            let full = length
                .checked_sub(1)
                .and_then(|n| n.checked_mul(strides[axis]))
                .and_then(|n| n.checked_add(dilations[axis].checked_mul(kernel[axis] - 1)?))
                .and_then(|n| n.checked_add(more[axis])?.checked_add(1))
                .filter(|&n| isize::try_from(n).is_ok())
                .ok_or_else(|| format!("axis {axis} of input {x:?} is empty or its result overflows"))?;
            let same = self.sliding.auto_pad != AutoPad::Explicit;
            let out = match wanted.get(axis) {
                Some(&out) => out,
                None if same => length.checked_mul(strides[axis]).ok_or_else(misfit)?,
                None => {
                    let taken = pads[axis].checked_add(pads[axes + axis]);
                    let out = taken.and_then(|taken| full.checked_sub(taken));
                    out.ok_or_else(|| format!("pads {pads:?} are more than the result of axis {axis} has"))?
                }
            };
            begin[axis] = match (wanted.is_empty() && !same, self.sliding.auto_pad) {
                (true, _) => pads[axis],
                (false, AutoPad::SameUpper) => full.saturating_sub(out) / 2,
                (false, _) => full.saturating_sub(out).div_ceil(2),
            };
            spatial.push(out);
        }
        let windows = Windows {
            kernel: kernel.to_vec(),
            strides,
            dilations,
            begin,
            end: Vec::new(),
            out: x[2..].to_vec(),
        };
        let outputs = weight[1].checked_mul(self.groups).ok_or_else(misfit)?;
        Ok(Geometry { windows, spatial, batch: x[0], inputs: x[1], outputs })
    }

    fn product<T: Product>(
        &self,
        geometry: &Geometry,
        x: &[T],
        turned: &[T],
        bias: Option<&[T]>,
    ) -> Result<Tensor, String> {
        let Geometry { windows, spatial, batch, inputs, outputs } = geometry;
        if bias.is_some_and(|bias| bias.len() != *outputs) {
            return Err(format!("the bias does not have {outputs} elements"));
        }
        let taps: usize = windows.kernel.iter().product();
        let (pixels, area) = (windows.out.iter().product::<usize>(), spatial.iter().product::<usize>());
        let (depth, per_group) = (inputs / self.groups, outputs / self.groups);
        let mut made = Tensor::zeros(T::DTYPE, &[&[*batch, *outputs], spatial.as_slice()].concat());
        // Enough channels at once that laying out the pixels for the product does not count, and as many lines of
        // pixels as keep its result in the cache.
        let fit = (PRODUCT_ROWS / taps).clamp(1, per_group);
        let channels = (1..=fit).rev().find(|n| per_group.is_multiple_of(*n)).unwrap_or(1);
        let width = windows.out[windows.out.len() - 1];
        let lines = (COLUMN_FLOATS / (channels * taps * width)).clamp(1, pixels / width);
        zeros_fit::<T>(&[channels, taps, lines, width])?;
        let work = channels * taps * pixels * depth / 16;
        for_each_chunk(made.slice_mut::<T>(), channels * area, work, |share, out| {
            let channel = share * channels;
            let (image, channel) = (channel / outputs, channel % outputs);
            let group = channel / per_group;
            let x = &x[(image * inputs + group * depth) * pixels..][..depth * pixels];
            let weights = &turned[channel * taps * depth..][..channels * taps * depth];
            for (i, out) in out.chunks_exact_mut(area.max(1)).enumerate() {
                out.fill(bias.map_or(T::default(), |bias| bias[channel + i]));
            }
            let mut columns = vec![T::default(); channels * taps * lines * width];
            let mut some = Vec::new();
            for first in (0..pixels / width).step_by(lines) {
                let lines = first..(first + lines).min(pixels / width);
                let count = lines.len() * width;
                some.clear();
                x.chunks_exact(pixels).for_each(|x| some.extend_from_slice(&x[first * width..][..count]));
                let columns = &mut columns[..channels * taps * count];
                columns.fill(T::default());
                T::product(weights, &some, channels * taps, depth, count, columns);
                let columns = columns.chunks_exact(taps * count);
                for (columns, out) in columns.zip(out.chunks_exact_mut(area.max(1))) {
                    add_windows(columns, lines.clone(), windows, spatial, out);
                }
            }
        });
        Ok(made)
    }
}

/// Weights `[C, M / groups, taps]` as `[M · taps, C / groups]`: rows of a product.
fn turned<T: Copy>(weight: &[T], geometry: &Geometry, groups: usize) -> Vec<T> {
    let (depth, columns) = (geometry.inputs / groups, weight.len() / geometry.inputs);
    let group = |group: usize| {
        let weight = &weight[group * depth * columns..][..depth * columns];
        (0..columns).flat_map(move |column| (0..depth).map(move |row| weight[row * columns + column]))
    };
    (0..groups).flat_map(group).collect()
}

impl Operator for ConvTranspose {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let (x, weight) = (needed(inputs, 0)?, needed(inputs, 1)?);
        let geometry = self.geometry(&x.shape, &weight.shape)?;
        if let Some(bias) = operand(inputs, 2)
            && bias.shape != [geometry.outputs]
        {
            return Err(format!(
                "bias {:?} is not one for each of {} channels",
                bias.shape, geometry.outputs
            )
            .into());
        }
        Ok(vec![(x.dtype, [&[geometry.batch, geometry.outputs], geometry.spatial.as_slice()].concat())])
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let (x, weight) = (given(inputs, 0)?, given(inputs, 1)?);
        let geometry = self.geometry(x.shape, weight.shape)?;
        with_real!(x.dtype, T => {
            let weight = turned(elements::<T>(&weight)?, &geometry, self.groups);
            let bias = optional(inputs, 2).map(|b| elements::<T>(&b)).transpose()?;
            Ok(vec![self.product(&geometry, elements::<T>(&x)?, &weight, bias)?])
        })
    }

    fn layer_of_windows(&self, weight: &[usize]) -> Option<Other> {
        let &[_, _, size, width] = weight else { return None };
        let Sliding { kernel, strides, dilations, pads, auto_pad, ceil_mode: _ } = &self.sliding;
        let none = |list: &[usize], what: usize| list.iter().all(|&x| x == what);
        let side_by_side = width == size
            && size > 1
            && (kernel.is_empty() || kernel[..] == [size; 2])
            && strides[..] == [size; 2]
            && none(dilations, 1)
            && none(pads, 0)
            && *auto_pad == AutoPad::Explicit;
        let whole = self.groups == 1 && none(&self.output_padding, 0) && self.output_shape.is_empty();
        (side_by_side && whole).then(|| blocks_of(size))
    }

    /// Weights are turned once where they are constant.
    fn prepare(&self, inputs: &[Option<&Fact>]) -> Option<Prepared> {
        let (x, weight) = (needed(inputs, 0).ok()?, needed(inputs, 1).ok()?);
        let constant: &Arc<Tensor> = weight.constant.as_ref()?;
        let geometry = self.geometry(&x.shape, &weight.shape).ok()?;
        // Half weights come here as they are, but to `run` as float32.
        let weight = turned(&reals::<f32>(&constant.view()), &geometry, self.groups);
        let this = self.clone();
        let run = move |inputs: &[Option<TensorView<'_>>], outputs: usize| {
            let x = given(inputs, 0)?;
            if x.dtype != crate::engine::tensor::DType::F32 {
                return this.run(inputs, outputs);
            }
            let bias = optional(inputs, 2).map(|b| elements::<f32>(&b)).transpose()?;
            Ok(vec![this.product(&geometry, elements::<f32>(&x)?, &weight, bias)?])
        };
        Some(Box::new(run))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> ConvTranspose {
        let sliding = Sliding::default();
        ConvTranspose { sliding, groups: 1, output_padding: Vec::new(), output_shape: Vec::new() }
    }

    fn check(
        op: &ConvTranspose,
        (x, of): (&[usize], &[f32]),
        weight: (&[usize], &[f32]),
        want: (&[usize], &[f32]),
    ) {
        let (x, weight) = (Tensor::from_slice(x, of), Tensor::from_slice(weight.0, weight.1));
        let facts = [Fact::computed(x.dtype(), x.shape().to_vec()), Fact::constant(Arc::new(weight.clone()))];
        let facts: Vec<Option<&Fact>> = facts.iter().map(Some).collect();
        let inputs = [Some(x.view()), Some(weight.view())];
        let want = Tensor::from_slice(want.0, want.1);
        assert_eq!(op.infer(&facts, 1).unwrap()[0].1, want.shape());
        assert_eq!(op.run(&inputs, 1).unwrap(), std::slice::from_ref(&want));
        assert_eq!(op.prepare(&facts).unwrap()(&inputs, 1).unwrap(), [want]);
    }

    #[test]
    fn windows_of_pixels_are_laid_over_each_other() {
        let x: (&[usize], &[f32]) = (&[1, 1, 3], &[1.0, 2.0, 3.0]);
        let w: (&[usize], &[f32]) = (&[1, 1, 2], &[1.0, 10.0]);
        check(&plain(), x, w, (&[1, 1, 4], &[1.0, 12.0, 23.0, 30.0]));
        let strided =
            ConvTranspose { sliding: Sliding { strides: vec![3], ..Sliding::default() }, ..plain() };
        check(&strided, x, w, (&[1, 1, 8], &[1.0, 10.0, 0.0, 2.0, 20.0, 0.0, 3.0, 30.0]));
        let padded = ConvTranspose { sliding: Sliding { pads: vec![1, 1], ..Sliding::default() }, ..plain() };
        check(&padded, x, w, (&[1, 1, 2], &[12.0, 23.0]));
        let longer = ConvTranspose { output_padding: vec![1], ..plain() };
        check(&longer, x, w, (&[1, 1, 5], &[1.0, 12.0, 23.0, 30.0, 0.0]));
        let shorter = ConvTranspose { output_shape: vec![3], ..plain() };
        check(&shorter, x, w, (&[1, 1, 3], &[12.0, 23.0, 30.0]));
    }

    #[test]
    fn only_windows_side_by_side_are_blocks() {
        let of = |strides: &[usize], pads: &[usize]| {
            let (strides, pads) = (strides.to_vec(), pads.to_vec());
            ConvTranspose { sliding: Sliding { strides, pads, ..Sliding::default() }, ..plain() }
        };
        let blocks =
            |op: &ConvTranspose, weight: &[usize]| op.layer_of_windows(weight).map(|layer| layer.name);
        let square = of(&[2, 2], &[]);
        assert_eq!(blocks(&square, &[8, 3, 2, 2]), Some("DepthToSpace"));
        assert_eq!(blocks(&of(&[2, 2], &[0; 4]), &[8, 3, 2, 2]), Some("DepthToSpace"));
        assert_eq!(blocks(&square, &[8, 3, 3, 3]), None, "they overlap");
        assert_eq!(blocks(&of(&[2, 1], &[]), &[8, 3, 2, 2]), None, "they overlap in one axis");
        assert_eq!(blocks(&of(&[2, 2], &[1, 0, 0, 0]), &[8, 3, 2, 2]), None, "a line is cut off");
        assert_eq!(blocks(&of(&[2], &[]), &[8, 3, 2]), None, "lines");
        assert_eq!(blocks(&ConvTranspose { groups: 2, ..square.clone() }, &[8, 3, 2, 2]), None);
        assert_eq!(blocks(&ConvTranspose { output_padding: vec![1, 0], ..square }, &[8, 3, 2, 2]), None);
    }

    #[test]
    fn groups_do_not_mix() {
        let op = ConvTranspose { groups: 2, ..plain() };
        let w: (&[usize], &[f32]) = (&[2, 2, 1], &[1.0, 2.0, 3.0, 4.0]);
        check(&op, (&[1, 2, 1], &[1.0, 10.0]), w, (&[1, 4, 1], &[1.0, 2.0, 30.0, 40.0]));
    }

    #[test]
    fn operands_that_do_not_fit_are_refused() {
        for (x, w) in [(&[1, 2, 3], &[3, 1, 2]), (&[1, 2, 0], &[2, 1, 2]), (&[1, 2, 3], &[2, 1, 0])] {
            assert!(plain().geometry(x, w).is_err(), "{x:?} {w:?}");
        }
        let padded = ConvTranspose { sliding: Sliding { pads: vec![9, 9], ..Sliding::default() }, ..plain() };
        assert!(padded.geometry(&[1, 1, 3], &[1, 1, 2]).is_err());
        let huge = Sliding { strides: vec![usize::MAX / 2], ..Sliding::default() };
        assert!(ConvTranspose { sliding: huge, ..plain() }.geometry(&[1, 1, 9], &[1, 1, 2]).is_err());
    }
}
