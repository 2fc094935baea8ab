//! Windows over images of any number of spatial axes and any type: the obvious loops, and for float32 convolutions a
//! product of gathered rows. Images of one or two axes in float32 have kernels of their own.

use crate::engine::graph::fact::Fact;
use crate::engine::graph::op::Sliding;
use crate::engine::graph::reach::Reach;
use crate::engine::graph::shapes::{Windows, windows};
use crate::engine::kernels::Epilogue;
use crate::engine::kernels::Window;
use crate::engine::kernels::gemm_f32::PackedF32;
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

/// One matrix a group: the rows of the product are gathered, so that it has one tap.
fn pack(context: Context, weight: &[f32], shape: &[usize], groups: usize) -> Packed {
    let (out, inputs, taps) = (shape[0] / groups, shape[1], shape[2..].iter().product::<usize>());
    let depth = inputs * taps;
    // `[O, taps, I]`: the order in which rows are gathered.
    let row = |o: usize| (0..depth).map(move |i| weight[o * depth + i % inputs * taps + i / inputs]);
    let moved: Vec<f32> = (0..shape[0]).flat_map(row).collect();
    let group = |part: &[f32]| PackedF32::pack(context.isa, part, out, 1, depth);
    Packed::Float(moved.chunks_exact((out * depth).max(1)).map(group).collect())
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
        let Packed::Float(packed) = packed else { unreachable!("packed as floats") };
        let bias = operands.get(2).map(|b| b.slice::<f32>());
        let x = operands.need(0).slice::<f32>();
        let out = out.slice_mut::<f32>();
        let (outputs, inputs, count) = (shape[0], shape[1], geometry.reach.windows());
        let (per_group, depth) = (outputs / groups, shape[1..].iter().product::<usize>());
        if x.is_empty() || out.is_empty() {
            return Ok(());
        }
        let share = (GATHERED_FLOATS / depth).clamp(1, count);
        let mut rows = vec![0f32; share * depth];
        let images = x.chunks_exact(geometry.area * geometry.channels);
        for (image, out) in images.zip(out.chunks_exact_mut(count * outputs)) {
            for (first, out) in (0..count).step_by(share).zip(out.chunks_mut(share * outputs)) {
                let windows = out.len() / outputs;
                for (g, packed) in packed.iter().enumerate() {
                    rows.fill(0.0);
                    for (i, row) in rows.chunks_exact_mut(depth).take(windows).enumerate() {
                        let index = geometry.reach.index(first + i);
                        geometry.reach.for_each(&index, &geometry.windows.kernel, |tap, pixel| {
                            let from = &image[pixel * geometry.channels + g * inputs..][..inputs];
                            row[tap * inputs..][..inputs].copy_from_slice(from);
                        });
                    }
                    let bias = bias.map(|b| &b[g * per_group..][..per_group]);
                    let epilogue = Epilogue { bias, activation: None, residual: None, lo, hi };
                    let (rows, window) = (&rows[..windows * depth], Window::of_rows(windows));
                    let (at, threads) = (g * per_group, context.threads);
                    packed.conv(rows, depth, 0, &window, &epilogue, out, outputs, at, threads);
                }
            }
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
