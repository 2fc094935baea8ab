//! Windows over images of any number of spatial axes and any type: the obvious loops, and for float32 convolutions a
//! product of gathered windows. Images of one or two axes in float32 have kernels of their own.

use std::ops::Range;

use crate::engine::graph::fact::Fact;
use crate::engine::graph::op::Sliding;
use crate::engine::graph::reach::Reach;
use crate::engine::graph::shapes::{Windows, windows};
use crate::engine::kernels::Epilogue;
use crate::engine::kernels::Window;
use crate::engine::kernels::depthwise_f32::PackedDepthwiseF32;
use crate::engine::kernels::gemm_f32::PackedF32;
use crate::engine::kernels::parallel::{parts, split_rows};
use crate::engine::tensor::{DType, Element};

use super::step::{Context, Kernel};
use super::weights::{Packed, Weights};

/// Gathered values of one share of a convolution, so that they stay in the second-level cache.
const GATHERED_FLOATS: usize = 1 << 17;

/// Windows over a channels-last image, and its sizes.
struct Geometry {
    windows: Windows,
    reach: Reach,
    /// Pixels of an image.
    area: usize,
    channels: usize,
}

impl Geometry {
    fn new(sliding: &Sliding, x: &[usize], kernel: &[usize]) -> Result<Geometry, String> {
        let [_, spatial @ .., channels] = x else { return Err(format!("shape {x:?} is no image")) };
        if kernel.contains(&0) {
            return Err(format!("a window of {kernel:?} is empty"));
        }
        let windows = windows(sliding, spatial, kernel)?;
        let reach = Reach::new(&windows, spatial);
        Ok(Geometry { windows, reach, area: spatial.iter().product(), channels: *channels })
    }

    /// Calls `window` with each window's index, the image that it looks at, and its pixel of the result.
    fn for_each<T, O: Element>(
        &self,
        x: &[T],
        out: &mut [O],
        mut window: impl FnMut(&[usize], &[T], &mut [O]),
    ) {
        let count = self.reach.windows();
        if x.is_empty() || out.is_empty() {
            return out.fill(O::zeroed());
        }
        let pixel = out.len() / (x.len() / (self.area * self.channels)) / count;
        for (image, out) in x.chunks_exact(self.area * self.channels).zip(out.chunks_exact_mut(count * pixel))
        {
            for (i, out) in out.chunks_exact_mut(pixel).enumerate() {
                window(&self.reach.index(i), image, out);
            }
        }
    }
}

/// MaxPool of any type of numbers.
pub(super) fn max_pool(sliding: &Sliding, x: &Fact) -> Result<Kernel, String> {
    fn of<T: Element + PartialOrd>(sliding: &Sliding, x: &Fact, least: T) -> Result<Kernel, String> {
        let geometry = Geometry::new(sliding, &x.shape, &sliding.kernel)?;
        Ok(Box::new(move |operands, mut out, _| {
            let channels = geometry.channels;
            geometry.for_each(operands.need(0).slice::<T>(), out.slice_mut::<T>(), |index, image, out| {
                out.fill(least);
                geometry.reach.for_each(index, &geometry.windows.kernel, |_, pixel| {
                    for (y, &v) in out.iter_mut().zip(&image[pixel * channels..][..channels]) {
                        if v > *y {
                            *y = v;
                        }
                    }
                });
            });
            Ok(())
        }))
    }
    match x.dtype {
        DType::F32 => of(sliding, x, f32::NEG_INFINITY),
        DType::F64 => of(sliding, x, f64::NEG_INFINITY),
        DType::I8 => of(sliding, x, i8::MIN),
        DType::U8 => of(sliding, x, u8::MIN),
        other => Err(format!("MaxPool of {other} is not supported")),
    }
}

/// AveragePool. Without `count_include_pad` pads do not count; what a last window reads beyond them never does.
pub(super) fn average_pool(sliding: &Sliding, count_include_pad: bool, x: &Fact) -> Result<Kernel, String> {
    let geometry = Geometry::new(sliding, &x.shape, &sliding.kernel)?;
    macro_rules! average {
        ($t:ty) => {
            Ok(Box::new(move |operands, mut out, _| {
                let channels = geometry.channels;
                geometry.for_each(
                    operands.need(0).slice::<$t>(),
                    out.slice_mut::<$t>(),
                    |index, image, out| {
                        let (inside, padded) = geometry.reach.counts(index);
                        let count = if count_include_pad { padded } else { inside.max(1) } as $t;
                        out.fill(0.0);
                        geometry.reach.for_each(index, &geometry.windows.kernel, |_, pixel| {
                            for (y, &v) in out.iter_mut().zip(&image[pixel * channels..][..channels]) {
                                *y += v;
                            }
                        });
                        out.iter_mut().for_each(|y| *y /= count);
                    },
                );
                Ok(())
            }))
        };
    }
    match x.dtype {
        DType::F32 => average!(f32),
        DType::F64 => average!(f64),
        other => Err(format!("AveragePool of {other} is not supported")),
    }
}

/// Conv of float32 or float64, results clamped to `[lo, hi]`. Weights are `[O, C / groups, taps…]`.
pub(super) fn conv(
    context: Context,
    weights: &Weights,
    node: usize,
    (sliding, groups): (&Sliding, usize),
    (x, weight): (&Fact, &Fact),
    (lo, hi): (f32, f32),
) -> Result<Kernel, String> {
    let geometry = Geometry::new(sliding, &x.shape, &weight.shape[2..])?;
    match x.dtype {
        DType::F32 => Ok(conv_f32(context, weights, node, (geometry, groups), weight, (lo, hi))),
        DType::F64 => Ok(conv_f64(geometry, groups, weight.shape.clone(), (lo.into(), hi.into()))),
        other => Err(format!("{other} is not supported here, float32 and float64 are")),
    }
}

/// What the kernels for lines want, as gathered windows are one: its pixels are the taps.
fn pack(context: Context, weight: &[f32], shape: &[usize], groups: usize) -> Packed {
    let (out, inputs, taps) = (shape[0] / groups, shape[1], shape[2..].iter().product::<usize>());
    let depth = inputs * taps;
    // `[O, taps, I]`: the order in which windows are gathered.
    let row = |o: usize| (0..depth).map(move |i| weight[o * depth + i % inputs * taps + i / inputs]);
    let moved: Vec<f32> = (0..shape[0]).flat_map(row).collect();
    if groups > 1 && (out, inputs) == (1, 1) {
        return Packed::DepthwiseFloat(PackedDepthwiseF32::pack(context.isa, &moved, groups, taps));
    }
    // A window that is read whole is a row of a plain product.
    let (taps, inputs) = if groups == 1 { (1, depth) } else { (taps, inputs) };
    let group = |part: &[f32]| PackedF32::pack(context.isa, part, out, taps, inputs);
    Packed::Float(moved.chunks_exact((out * depth).max(1)).map(group).collect())
}

/// So many gathered windows of so many taps, side by side in a line.
fn line_of(windows: usize, taps: usize) -> Window {
    Window { in_w: windows * taps, kernel_w: taps, stride_w: taps, ..Window::of_rows(windows) }
}

fn conv_f32(
    context: Context,
    weights: &Weights,
    node: usize,
    (geometry, groups): (Geometry, usize),
    weight: &Fact,
    (lo, hi): (f32, f32),
) -> Kernel {
    let shape = weight.shape.clone();
    let packed = weights.get(node, weight, |w| pack(context, w.slice::<f32>(), &shape, groups));
    Box::new(move |operands, mut out, _| {
        let fresh;
        let packed = match &packed {
            Some(packed) => &**packed,
            None => {
                fresh = pack(context, operands.need(1).slice::<f32>(), &shape, groups);
                &fresh
            }
        };
        let bias = operands.get(2).map(|b| b.slice::<f32>());
        let x = operands.need(0).slice::<f32>();
        let out = out.slice_mut::<f32>();
        let (outputs, inputs, count) = (shape[0], shape[1], geometry.reach.windows());
        let taps = shape[2..].iter().product::<usize>();
        let (channels, per_group) = (geometry.channels, outputs / groups);
        if x.is_empty() || out.is_empty() {
            return Ok(());
        }
        let share = (GATHERED_FLOATS / (taps * channels)).clamp(1, count);
        let products = count * outputs * inputs * taps;
        let parts = parts(context.threads, products / context.isa.products_per_ns()).min(count);
        // A product of few rows is split by its columns.
        let threads = if parts == 1 { context.threads } else { 1 };
        let images = x.chunks_exact(geometry.area * channels);
        for (image, out) in images.zip(out.chunks_exact_mut(count * outputs)) {
            split_rows(out, 0..count, outputs, 1, parts, &|range: Range<usize>, out: &mut [f32]| {
                // All channels of a window lie together: gathering by group would walk over the taps once for each.
                let mut gathered = vec![0f32; share * taps * channels];
                for (first, out) in range.step_by(share).zip(out.chunks_mut(share * outputs)) {
                    let windows = out.len() / outputs;
                    let gathered = &mut gathered[..windows * taps * channels];
                    gathered.fill(0.0);
                    for (i, pixels) in gathered.chunks_exact_mut(taps * channels).enumerate() {
                        let index = geometry.reach.index(first + i);
                        geometry.reach.for_each(&index, &geometry.windows.kernel, |tap, pixel| {
                            let from = &image[pixel * channels..][..channels];
                            pixels[tap * channels..][..channels].copy_from_slice(from);
                        });
                    }
                    let whole = Epilogue { bias, activation: None, residual: None, lo, hi };
                    match packed {
                        Packed::DepthwiseFloat(packed) => {
                            packed.conv(gathered, &line_of(windows, taps), &whole, out, threads);
                        }
                        Packed::Float(packed) if groups == 1 => {
                            packed[0].matmul(gathered, windows, &whole, out, threads);
                        }
                        Packed::Float(packed) => {
                            for (g, packed) in packed.iter().enumerate() {
                                let bias = bias.map(|b| &b[g * per_group..][..per_group]);
                                let (epilogue, line) = (Epilogue { bias, ..whole }, line_of(windows, taps));
                                let (x, from, to) = (&*gathered, g * inputs, g * per_group);
                                packed.conv(x, channels, from, &line, &epilogue, out, outputs, to, threads);
                            }
                        }
                        _ => unreachable!("packed as floats"),
                    }
                }
            });
        }
        Ok(())
    })
}

fn conv_f64(geometry: Geometry, groups: usize, shape: Vec<usize>, (lo, hi): (f64, f64)) -> Kernel {
    Box::new(move |operands, mut out, _| {
        let bias = operands.get(2).map(|b| b.slice::<f64>());
        let weight = operands.need(1).slice::<f64>();
        let (inputs, taps) = (shape[1], shape[2..].iter().product::<usize>());
        let per_group = shape[0] / groups;
        let x = operands.need(0).slice::<f64>();
        geometry.for_each(x, out.slice_mut::<f64>(), |index, image, out| {
            match bias {
                Some(bias) => out.copy_from_slice(bias),
                None => out.fill(0.0),
            }
            geometry.reach.for_each(index, &geometry.windows.kernel, |tap, pixel| {
                let image = &image[pixel * geometry.channels..][..geometry.channels];
                for (o, y) in out.iter_mut().enumerate() {
                    let image = &image[o / per_group * inputs..][..inputs];
                    let column = weight[o * inputs * taps..][..inputs * taps].iter().skip(tap).step_by(taps);
                    *y += image.iter().zip(column).map(|(a, b)| a * b).sum::<f64>();
                }
            });
            // Not `clamp`: what is not a number stays, and the bounds may be infinite.
            out.iter_mut().for_each(|y| {
                *y = if *y < lo {
                    lo
                } else if *y > hi {
                    hi
                } else {
                    *y
                }
            });
        });
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::super::Options;
    use super::super::session::Session;
    use crate::engine::graph::op::{Op, Sliding};
    use crate::engine::graph::{Graph, Node, Value};
    use crate::engine::kernels::isa::Isa;
    use crate::engine::tensor::{DType, Tensor};

    fn randoms(count: usize, mut seed: u32) -> Vec<f32> {
        let mut next = || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) as f32 / (1u32 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    /// Stride 2, pads of 1, as one chain of products over taps and then channels; pads take part.
    fn obvious(x: &Tensor, w: &Tensor, bias: &[f32], groups: usize, out: &[usize]) -> Vec<f32> {
        let (&[_, channels, d, h, width], &[_, inputs, kd, kh, kw]) = (x.shape(), w.shape()) else {
            panic!("volumes")
        };
        let (x, w) = (x.slice::<f32>(), w.slice::<f32>());
        let per_group = out[1] / groups;
        let place = |mut i: usize| {
            let mut index = [0; 5];
            for (at, &length) in index.iter_mut().zip(out).rev() {
                (*at, i) = (i % length, i / length);
            }
            index
        };
        let element = |i: usize| {
            let [n, o, z, y, column] = place(i);
            let mut acc = 0f32;
            for tap in 0..kd * kh * kw {
                let at = [2 * z + tap / kw / kh, 2 * y + tap / kw % kh, 2 * column + tap % kw];
                let inside = at.iter().zip([d, h, width]).all(|(&at, length)| (1..=length).contains(&at));
                for c in 0..inputs {
                    let channel = n * channels + o / per_group * inputs + c;
                    let value = match inside {
                        true => x[((channel * d + at[0] - 1) * h + at[1] - 1) * width + at[2] - 1],
                        false => 0.0,
                    };
                    acc = value.mul_add(w[(o * inputs + c) * kd * kh * kw + tap], acc);
                }
            }
            acc + bias[o]
        };
        (0..out.iter().product()).map(element).collect()
    }

    #[test]
    fn a_convolution_of_volumes_is_one_chain_whatever_its_groups() {
        for (channels, outputs, groups) in [(8, 20, 1), (40, 40, 40), (12, 18, 3), (6, 12, 6)] {
            let mut g = Graph::default();
            let named =
                |name: &str| Value { name: name.to_owned(), dtype: Some(DType::F32), ..Value::default() };
            let (x, y) = (g.add_value(named("x")), g.add_value(named("y")));
            let of =
                |shape: &[usize], seed| Tensor::from_slice(shape, &randoms(shape.iter().product(), seed));
            let volume = of(&[2, channels, 4, 5, 6], 1);
            let (weight, bias) = (of(&[outputs, channels / groups, 3, 3, 3], 2), of(&[outputs], 3));
            let inputs = [("w", weight.clone()), ("b", bias.clone())].map(|(n, t)| g.add_constant(n, t));
            let sliding = Sliding { strides: vec![2; 3], pads: vec![1; 6], ..Sliding::default() };
            let operands = [x, inputs[0], inputs[1]].map(Some).to_vec();
            g.nodes = vec![Node::new("c".to_owned(), Op::Conv { sliding, groups }, operands, vec![y])];
            (g.inputs, g.outputs) = (vec![x], vec![y]);
            for isa in Isa::available() {
                for threads in [1, 3] {
                    let options = Options { isa, threads, ..Options::default() };
                    let session = Session::new(g.clone(), options).unwrap();
                    let got = session.run(&[("x", &volume)]).unwrap().remove(0);
                    let want = obvious(&volume, &weight, bias.slice(), groups, got.shape());
                    assert_eq!(got.slice::<f32>(), want, "{groups} groups, {isa:?}, {threads} threads");
                }
            }
        }
    }
}
