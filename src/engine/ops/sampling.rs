//! Samples of an image at places that the data says: GridSample, DeformConv.

use crate::engine::graph::fact::{Fact, Results, Unfit, needed, operand};
use crate::engine::graph::op::Sliding;
use crate::engine::graph::operator::{Call, Operator};
use crate::engine::graph::shapes::{Windows, windows};
use crate::engine::tensor::{Tensor, TensorView};

use super::product::{Product, zeros};
use super::real::{Real, elements, for_each_chunk, given, optional, reals, with_real};
use super::{Entry, Made};

pub(super) const OPERATORS: &[Entry] = &[("", "GridSample", grid_sample), ("", "DeformConv", deform_conv)];

/// `x [N, C, …], grid [N, …, axes]`: `x` at the places of the grid, the last axis first, each from -1 to 1.
#[derive(Debug)]
struct GridSample {
    mode: Mode,
    padding: Padding,
    align_corners: bool,
    opset: i64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Nearest,
    Linear,
    Cubic,
}

/// What stands beside the image.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Padding {
    Zeros,
    Border,
    Reflection,
}

fn grid_sample(call: &Call<'_>) -> Result<Made, String> {
    let a = call.attributes;
    let (mode, newer) = match a.text_or("mode", "linear")? {
        "nearest" => (Mode::Nearest, false),
        // The names before opset 20.
        "bilinear" => (Mode::Linear, false),
        "bicubic" => (Mode::Cubic, false),
        "linear" => (Mode::Linear, call.opset >= 20),
        "cubic" => (Mode::Cubic, call.opset >= 20),
        other => return Err(format!("mode={other} is not supported")),
    };
    let padding = match a.text_or("padding_mode", "zeros")? {
        "zeros" => Padding::Zeros,
        "border" => Padding::Border,
        "reflection" => Padding::Reflection,
        other => return Err(format!("padding_mode={other} is not supported")),
    };
    let align_corners = a.flag("align_corners", false)?;
    Ok(Made::new(GridSample { mode, padding, align_corners, opset: if newer { 20 } else { 16 } }))
}

/// The elements that a sample is made of: where they stand in one channel, and their weights.
#[derive(Debug, Default)]
struct Blend<T> {
    places: Vec<u32>,
    weights: Vec<T>,
}

impl GridSample {
    fn shape(&self, x: &[usize], grid: &[usize]) -> Result<Vec<usize>, String> {
        let axes = x.len().saturating_sub(2);
        let fits = (1..=3).contains(&axes)
            && grid.len() == x.len()
            && grid[0] == x[0]
            && grid[grid.len() - 1] == axes
            && !x[2..].contains(&0)
            && u32::try_from(x[2..].iter().product::<usize>()).is_ok();
        match fits {
            true => Ok([&x[..2], &grid[1..grid.len() - 1]].concat()),
            false => Err(format!("input {x:?} and grid {grid:?} do not fit")),
        }
    }

    /// The place on an axis that `n`, from -1 to 1, stands for. In the grid's own precision, as ONNX Runtime has it.
    fn place<G: Real>(&self, n: G, length: usize) -> f64 {
        let (one, two, length) = (G::of(1.0), G::of(2.0), G::of(length as f64));
        let place = match self.align_corners {
            true => (n + one) / two * (length - one),
            false => ((n + one) * length - one) / two,
        };
        let place = place.wide();
        if self.mode == Mode::Nearest { place.round_ties_even() } else { place }
    }

    /// The ends of an axis, at which places are reflected.
    fn ends(&self, length: usize) -> (f64, f64) {
        match self.align_corners {
            true => (0.0, length as f64 - 1.0),
            false => (-0.5, length as f64 - 0.5),
        }
    }

    /// A place, moved into the axis where the padding says so.
    fn padded(&self, place: f64, length: usize) -> f64 {
        match self.padding {
            Padding::Zeros => place,
            Padding::Border => place.clamp(0.0, length as f64 - 1.0),
            Padding::Reflection => reflected(place, self.ends(length)),
        }
    }

    /// The element `at` of an axis, or none where it is a zero beside the image.
    fn element(&self, at: i64, length: usize) -> Option<usize> {
        let last = length as i64 - 1;
        match self.padding {
            Padding::Zeros => (0..=last).contains(&at).then_some(at as usize),
            Padding::Border => Some(at.clamp(0, last) as usize),
            Padding::Reflection => {
                Some((reflected(at as f64, self.ends(length)) as i64).clamp(0, last) as usize)
            }
        }
    }

    /// Adds the elements of one sample at `point`, which has the last axis first.
    fn sample<G: Real, T: Real>(&self, point: &[G], spatial: &[usize], blend: &mut Blend<T>) {
        let first = blend.places.len();
        blend.places.push(0);
        blend.weights.push(T::of(1.0));
        for (&length, &n) in spatial.iter().zip(point.iter().rev()) {
            // A cubic sample is padded element by element, as PyTorch and ONNX Runtime have it: moved into the image
            // as a whole it would lose its slope at the border.
            let place = match self.mode {
                Mode::Cubic => self.place(n, length),
                _ => self.padded(self.place(n, length), length),
            };
            let base = place.floor();
            let (taps, weights): (usize, [f64; 4]) = match self.mode {
                Mode::Nearest => (1, [1.0, 0.0, 0.0, 0.0]),
                Mode::Linear => (2, [1.0 - (place - base), place - base, 0.0, 0.0]),
                Mode::Cubic => (4, cubic_weights(place - base)),
            };
            let start = (base as i64).saturating_sub(if taps == 4 { 1 } else { 0 });
            let before = (blend.places.split_off(first), blend.weights.split_off(first));
            for (&outer, &weight) in before.0.iter().zip(&before.1) {
                for (tap, &own) in weights[..taps].iter().enumerate() {
                    let element = self.element(start.saturating_add(tap as i64), length);
                    let weight = if element.is_some() { weight * T::of(own) } else { T::default() };
                    blend.places.push(outer * length as u32 + element.unwrap_or(0) as u32);
                    blend.weights.push(weight);
                }
            }
        }
    }

    fn sampled<G: Real, T: Real>(&self, x: &TensorView<'_>, grid: &TensorView<'_>) -> Result<Tensor, String> {
        let shape = self.shape(x.shape, grid.shape)?;
        let (values, grid) = (elements::<T>(x)?, elements::<G>(grid)?);
        let (channels, spatial) = (x.shape[1], &x.shape[2..]);
        let (area, points) = (spatial.iter().product::<usize>(), shape[2..].iter().product::<usize>());
        let mut made = Tensor::zeros(T::DTYPE, &shape);
        if made.is_empty() {
            return Ok(made);
        }
        let images = made.slice_mut::<T>().chunks_exact_mut(channels * points);
        let grids = grid.chunks_exact(points * spatial.len());
        for ((out, grid), image) in images.zip(grids).zip(values.chunks_exact(channels * area)) {
            let mut blend = Blend::<T>::default();
            for point in grid.chunks_exact(spatial.len()) {
                self.sample(point, spatial, &mut blend);
            }
            let taps = blend.places.len() / points;
            for_each_chunk(out, points, points * taps, |channel, out| {
                let plane = &image[channel * area..][..area];
                let lines = blend.places.chunks_exact(taps).zip(blend.weights.chunks_exact(taps));
                for (y, (places, weights)) in out.iter_mut().zip(lines) {
                    *y = places.iter().zip(weights).map(|(&p, &w)| plane[p as usize] * w).sum();
                }
            });
        }
        Ok(made)
    }
}

/// A place thrown back at the ends until it lies between them.
fn reflected(place: f64, (low, high): (f64, f64)) -> f64 {
    let range = high - low;
    if (low..=high).contains(&place) || !place.is_finite() || range <= 0.0 {
        return place.clamp(low, high.max(low));
    }
    let beyond = if place < low { low - place } else { place - high };
    let (turns, rest) = ((beyond / range).floor(), beyond % range);
    match (place < low) == (turns % 2.0 == 0.0) {
        true => low + rest,
        false => high - rest,
    }
}

/// Keys' cubic kernel with a = −0.75, at the four elements around a place.
fn cubic_weights(fraction: f64) -> [f64; 4] {
    const A: f64 = -0.75;
    let near = |d: f64| ((A + 2.0) * d - (A + 3.0)) * d * d + 1.0;
    let far = |d: f64| ((A * d - 5.0 * A) * d + 8.0 * A) * d - 4.0 * A;
    [far(fraction + 1.0), near(fraction), near(1.0 - fraction), far(2.0 - fraction)]
}

impl Operator for GridSample {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let (x, grid) = (needed(inputs, 0)?, needed(inputs, 1)?);
        Ok(vec![(x.dtype, self.shape(&x.shape, &grid.shape)?)])
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let (x, grid) = (given(inputs, 0)?, given(inputs, 1)?);
        with_real!(grid.dtype, G => with_real!(x.dtype, T => Ok(vec![self.sampled::<G, T>(&x, &grid)?])))
    }

    fn opset(&self) -> i64 {
        self.opset
    }
}

/// `x [N, C, H, W], weight [O, C / groups, h, w], offset [N, offset_groups · h · w · 2, …] [, bias [O]] [, mask]`: a
/// convolution whose taps are moved by the offsets (row, then column) and multiplied by the mask.
#[derive(Debug)]
struct DeformConv {
    sliding: Sliding,
    groups: usize,
    offset_groups: usize,
}

fn deform_conv(call: &Call<'_>) -> Result<Made, String> {
    let a = call.attributes;
    let positive = |name: &str| -> Result<usize, String> {
        let n = a.int_or(name, 1)?;
        usize::try_from(n).ok().filter(|&n| n > 0).ok_or_else(|| format!("{name}={n} is not positive"))
    };
    let (groups, offset_groups) = (positive("group")?, positive("offset_group")?);
    Ok(Made::new(DeformConv { sliding: Sliding::read(a)?, groups, offset_groups }))
}

impl DeformConv {
    /// The windows; shapes are those of `x`, `weight`, `offset`, `bias`, `mask`.
    fn geometry(&self, shapes: [Option<&[usize]>; 5]) -> Result<Windows, String> {
        let [Some(x), Some(weight), Some(offset), bias, mask] = shapes else {
            return Err("an input is missing".to_owned());
        };
        let misfit = || {
            format!(
                "input {x:?}, weight {weight:?}, offset {offset:?}, bias {bias:?} and mask {mask:?} do not fit"
            )
        };
        if x.len() != 4 || weight.len() != 4 || offset.len() != 4 {
            return Err(format!("{} dimensions are not supported, 4 are", x.len()));
        }
        let (groups, offset_groups) = (self.groups, self.offset_groups);
        let fits = weight[1].checked_mul(groups) == Some(x[1])
            && weight[0].is_multiple_of(groups)
            && x[1].is_multiple_of(offset_groups)
            && weight[1..].iter().all(|&n| n > 0)
            && (self.sliding.kernel.is_empty() || self.sliding.kernel == weight[2..]);
        if !fits {
            return Err(misfit());
        }
        let windows = windows(&self.sliding, &x[2..], &weight[2..])?;
        let taps =
            weight[2].checked_mul(weight[3]).and_then(|n| n.checked_mul(offset_groups)).ok_or_else(misfit)?;
        let image = |channels: Option<usize>| channels.map(|c| vec![x[0], c, windows.out[0], windows.out[1]]);
        let fits = image(taps.checked_mul(2)).as_deref() == Some(offset)
            && bias.is_none_or(|bias| *bias == [weight[0]])
            && (mask.is_none() || image(Some(taps)).as_deref() == mask);
        if fits { Ok(windows) } else { Err(misfit()) }
    }

    fn run_as<T: Product>(&self, inputs: &[Option<TensorView<'_>>]) -> Result<Tensor, String> {
        let shape_of = |i: usize| inputs.get(i).and_then(|x| x.as_ref()).map(|x| x.shape);
        let windows = self.geometry([0, 1, 2, 3, 4].map(shape_of))?;
        let (x, weight, offset) = (given(inputs, 0)?, given(inputs, 1)?, given(inputs, 2)?);
        let (bias, mask) = (optional(inputs, 3), optional(inputs, 4));
        let (bias, mask) = (bias.map(|b| reals::<T>(&b)), mask.map(|m| reals::<T>(&m)));
        let (values, weights, offsets) =
            (elements::<T>(&x)?, elements::<T>(&weight)?, elements::<T>(&offset)?);
        let (channels, outputs) = (x.shape[1], weight.shape[0]);
        let (area, points) = (x.shape[2] * x.shape[3], windows.out[0] * windows.out[1]);
        let taps = windows.kernel[0] * windows.kernel[1];
        let (depth, per_group) = (channels / self.groups * taps, outputs / self.groups);
        let mut made = Tensor::zeros(T::DTYPE, &[x.shape[0], outputs, windows.out[0], windows.out[1]]);
        if made.is_empty() {
            return Ok(made);
        }
        let mut columns = zeros::<T>(&[channels, taps, points])?;
        for (image, out) in made.slice_mut::<T>().chunks_exact_mut(outputs * points).enumerate() {
            // The moved and masked taps: `[channels, taps, points]`.
            for_each_chunk(&mut columns, points, points * 8, |line, column| {
                let (channel, tap) = (line / taps, line % taps);
                let plane = &values[(image * channels + channel) * area..][..area];
                let group = channel / (channels / self.offset_groups);
                let moved = (image * self.offset_groups + group) * taps + tap;
                let (down, right) = offsets[moved * 2 * points..][..2 * points].split_at(points);
                let at = |axis: usize, tap: usize, window: usize, by: T| {
                    let start = window * windows.strides[axis] + tap * windows.dilations[axis];
                    start as f64 - windows.begin[axis] as f64 + by.wide()
                };
                for (point, v) in column.iter_mut().enumerate() {
                    let row = at(0, tap / windows.kernel[1], point / windows.out[1], down[point]);
                    let line = at(1, tap % windows.kernel[1], point % windows.out[1], right[point]);
                    let factor = mask.as_ref().map_or(T::of(1.0), |mask| mask[moved * points + point]);
                    *v = between(plane, &x.shape[2..], row, line) * factor;
                }
            });
            for (group, out) in out.chunks_exact_mut(per_group * points).enumerate() {
                let weights = &weights[group * per_group * depth..][..per_group * depth];
                T::product(
                    weights,
                    &columns[group * depth * points..][..depth * points],
                    per_group,
                    depth,
                    points,
                    out,
                );
            }
            for (line, &bias) in out.chunks_exact_mut(points).zip(bias.iter().flatten()) {
                line.iter_mut().for_each(|y| *y += bias);
            }
        }
        Ok(made)
    }
}

/// The image between its four pixels around a place; beside it are zeros.
fn between<T: Real>(plane: &[T], spatial: &[usize], row: f64, column: f64) -> T {
    let (top, left) = (row.floor(), column.floor());
    let (down, right) = (row - top, column - left);
    let mut sum = 0.0;
    for (y, weight) in [(top, 1.0 - down), (top + 1.0, down)] {
        for (x, weight) in [(left, weight * (1.0 - right)), (left + 1.0, weight * right)] {
            let inside = (0.0..spatial[0] as f64).contains(&y) && (0.0..spatial[1] as f64).contains(&x);
            if inside {
                sum += weight * plane[y as usize * spatial[1] + x as usize].wide();
            }
        }
    }
    T::of(sum)
}

impl Operator for DeformConv {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let (x, weight) = (needed(inputs, 0)?, needed(inputs, 1)?);
        let shape_of = |i: usize| operand(inputs, i).map(|x| x.shape.as_slice());
        let windows = self.geometry([0, 1, 2, 3, 4].map(shape_of))?;
        Ok(vec![(x.dtype, vec![x.shape[0], weight.shape[0], windows.out[0], windows.out[1]])])
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        with_real!(given(inputs, 0)?.dtype, T => Ok(vec![self.run_as::<T>(inputs)?]))
    }

    fn opset(&self) -> i64 {
        19
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_beyond_an_end_is_thrown_back() {
        for (place, want) in [(-1.0, 1.0), (4.0, 2.0), (-4.0, 2.0), (7.0, 1.0), (1.5, 1.5), (1e300, 0.0)] {
            let got = reflected(place, (0.0, 3.0));
            assert!((got - want).abs() < 1e-9 || (0.0..=3.0).contains(&got) && place > 1e9, "{place}: {got}");
        }
        assert_eq!(reflected(5.0, (0.0, 0.0)), 0.0);
        assert_eq!(reflected(f64::INFINITY, (0.0, 3.0)), 3.0);
    }

    #[test]
    fn a_grid_names_places_from_minus_one_to_one() {
        let x = Tensor::from_slice(&[1, 1, 1, 3], &[1.0f32, 2.0, 4.0]);
        let grid = Tensor::from_slice(&[1, 1, 4, 2], &[-1.0f32, 0.0, 0.0, 0.0, 0.5, 0.0, f32::INFINITY, 0.0]);
        for (padding, want) in
            [(Padding::Border, [1.0, 2.0, 3.0, 4.0]), (Padding::Zeros, [1.0, 2.0, 3.0, 0.0])]
        {
            let op = GridSample { mode: Mode::Linear, padding, align_corners: true, opset: 16 };
            let made = op.run(&[Some(x.view()), Some(grid.view())], 1).unwrap();
            assert_eq!(made[0].slice::<f32>()[..3], want[..3], "{padding:?}");
        }
        let op = GridSample { mode: Mode::Nearest, padding: Padding::Zeros, align_corners: true, opset: 16 };
        let made = op.run(&[Some(x.view()), Some(grid.view())], 1).unwrap();
        assert_eq!(made[0].slice::<f32>(), [1.0, 2.0, 4.0, 0.0]);
        assert!(op.shape(&[1, 1, 1, 3], &[1, 1, 4, 3]).is_err());
        assert!(op.shape(&[1, 1, 0, 3], &[1, 1, 4, 2]).is_err());
    }

    #[test]
    fn a_tap_that_is_moved_reads_between_pixels() {
        let x = Tensor::from_slice(&[1, 1, 1, 3], &[1.0f32, 2.0, 4.0]);
        let weight = Tensor::from_slice(&[1, 1, 1, 1], &[2.0f32]);
        let offset = Tensor::from_slice(&[1, 2, 1, 3], &[0.0f32, 0.0, 0.0, 0.5, 1.0, 1.0]);
        let op = DeformConv { sliding: Sliding::default(), groups: 1, offset_groups: 1 };
        let made = op.run(&[Some(x.view()), Some(weight.view()), Some(offset.view())], 1).unwrap();
        assert_eq!(made[0].slice::<f32>(), [3.0, 8.0, 0.0]);
    }
}
