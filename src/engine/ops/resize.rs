//! Resize and the Upsample before it: which elements of an axis, and how much of each, make an element of the result.

use crate::engine::graph::fact::{Fact, Results, Unfit, axis_index, needed, operand};
use crate::engine::graph::operator::{Call, Operator, Prepared, Writer};
use crate::engine::graph::shapes::VALUE_BYTES_MAX;
use crate::engine::tensor::{DType, Tensor, TensorView, element_count};

use super::real::{Real, given, optional, reals};
use super::resample::{AxisMap, Maps, blend, fill_outside, pick};
use super::{Entry, Made};

pub(super) const OPERATORS: &[Entry] = &[("", "Resize", resize), ("", "Upsample", upsample)];

/// `x, roi, scales, sizes`: the tensor at another resolution. `scales` is `[axes]`, the factor of each axis, or
/// `sizes` is, the lengths; `roi`, `[2 · axes]`, the part that `tf_crop_and_resize` takes, starts then ends.
#[derive(Clone, Debug)]
struct Resize {
    mode: Mode,
    coordinates: Coordinates,
    exclude_outside: bool,
    extrapolation: f32,
    antialias: bool,
    policy: Policy,
    axes: Option<Vec<i64>>,
    opset: i64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Mode {
    Nearest(Nearest),
    Linear,
    Cubic { a: f32 },
}

/// Which of two neighbours is nearest.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Nearest {
    PreferFloor,
    PreferCeil,
    Floor,
    Ceil,
    /// As before opset 11: floor, and only where the axis does not shrink.
    Old,
}

/// From a place in the result to a place in the operand.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Coordinates {
    HalfPixel,
    HalfPixelSymmetric,
    PytorchHalfPixel,
    AlignCorners,
    Asymmetric,
    CropAndResize,
    HalfPixelForNearest,
}

/// What `sizes` mean.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Policy {
    Stretch,
    NotLarger,
    NotSmaller,
}

fn resize(call: &Call<'_>) -> Result<Made, String> {
    if call.opset < 11 {
        return old_form(call);
    }
    let a = call.attributes;
    let nearest = match a.text_or("nearest_mode", "round_prefer_floor")? {
        "round_prefer_floor" => Nearest::PreferFloor,
        "round_prefer_ceil" => Nearest::PreferCeil,
        "floor" => Nearest::Floor,
        "ceil" => Nearest::Ceil,
        other => return Err(format!("nearest_mode={other} is not supported")),
    };
    let mode = match a.text_or("mode", "nearest")? {
        "nearest" => Mode::Nearest(nearest),
        "linear" => Mode::Linear,
        "cubic" => Mode::Cubic { a: a.float_or("cubic_coeff_a", -0.75)? },
        other => return Err(format!("mode={other} is not supported")),
    };
    let coordinates = match a.text_or("coordinate_transformation_mode", "half_pixel")? {
        "half_pixel" => Coordinates::HalfPixel,
        "half_pixel_symmetric" => Coordinates::HalfPixelSymmetric,
        "pytorch_half_pixel" => Coordinates::PytorchHalfPixel,
        "align_corners" => Coordinates::AlignCorners,
        "asymmetric" => Coordinates::Asymmetric,
        "tf_crop_and_resize" => Coordinates::CropAndResize,
        // Opset 11 to 12 only.
        "tf_half_pixel_for_nn" => Coordinates::HalfPixelForNearest,
        other => return Err(format!("coordinate_transformation_mode={other} is not supported")),
    };
    let policy = match a.text_or("keep_aspect_ratio_policy", "stretch")? {
        "stretch" => Policy::Stretch,
        "not_larger" => Policy::NotLarger,
        "not_smaller" => Policy::NotSmaller,
        other => return Err(format!("keep_aspect_ratio_policy={other} is not supported")),
    };
    let antialias = a.flag("antialias", false)?;
    if antialias && matches!(mode, Mode::Nearest(_)) {
        return Err("antialias with mode=nearest is not supported".to_owned());
    }
    let axes = a.ints("axes")?;
    let newer = antialias || axes.is_some() || policy != Policy::Stretch;
    let opset = match coordinates {
        Coordinates::HalfPixelSymmetric => 19,
        _ if newer => 18,
        _ => 13,
    };
    Ok(Made::new(Resize {
        mode,
        coordinates,
        exclude_outside: a.flag("exclude_outside", false)?,
        extrapolation: a.float_or("extrapolation_value", 0.0)?,
        antialias,
        policy,
        axes,
        opset,
    }))
}

/// `x, scales`: places are `x / scale`.
fn old_form(call: &Call<'_>) -> Result<Made, String> {
    let mode = match call.attributes.text_or("mode", "nearest")? {
        "nearest" => Mode::Nearest(Nearest::Old),
        "linear" | "bilinear" => Mode::Linear,
        other => return Err(format!("mode={other} is not supported")),
    };
    let resize = Resize {
        mode,
        coordinates: Coordinates::Asymmetric,
        exclude_outside: false,
        extrapolation: 0.0,
        antialias: false,
        policy: Policy::Stretch,
        axes: None,
        opset: 13,
    };
    let written = [
        ("coordinate_transformation_mode", "asymmetric"),
        ("mode", if mode == Mode::Linear { "linear" } else { "nearest" }),
        ("nearest_mode", "floor"),
    ];
    let no_roi = Tensor::zeros(DType::F32, &[0]);
    Ok(Made::new(resize).operand(1, no_roi, &[]).renamed("Resize", &written))
}

fn upsample(call: &Call<'_>) -> Result<Made, String> {
    let made = old_form(call)?;
    match call.attributes.floats("scales")? {
        Some(scales) if call.opset < 9 => {
            Ok(made.operand(2, Tensor::from_slice(&[scales.len()], &scales), &["scales"]))
        }
        _ => Ok(made),
    }
}

/// What the operands say of one axis.
#[derive(Clone, Copy, Debug)]
struct Axis {
    length: usize,
    out: usize,
    scale: f32,
    roi: (f32, f32),
}

impl Resize {
    /// Length and scale of every axis. An empty list is one that is not given.
    fn axes(&self, shape: &[usize], roi: &[f32], scales: &[f32], sizes: &[i64]) -> Result<Vec<Axis>, String> {
        let rank = shape.len();
        let named: Vec<usize> = match &self.axes {
            Some(axes) => axes.iter().map(|&axis| axis_index(axis, rank, false)).collect::<Result<_, _>>()?,
            None => (0..rank).collect(),
        };
        let given = if scales.is_empty() { sizes.len() } else { scales.len() };
        if given != named.len() {
            return Err(format!("{given} scales or sizes are given for {} axes", named.len()));
        }
        let mut all: Vec<Axis> =
            shape.iter().map(|&n| Axis { length: n, out: n, scale: 1.0, roi: (0.0, 1.0) }).collect();
        for (i, &axis) in named.iter().enumerate() {
            if roi.len() == 2 * named.len() {
                all[axis].roi = (roi[i], roi[named.len() + i]);
            }
            let length = shape[axis];
            if let Some(&scale) = scales.get(i) {
                if !(scale.is_finite() && scale > 0.0) {
                    return Err(format!("a scale of {scale} makes no sense"));
                }
                (all[axis].scale, all[axis].out) = (scale, (length as f32 * scale) as usize);
            } else {
                let out =
                    usize::try_from(sizes[i]).map_err(|_| format!("a size of {} is negative", sizes[i]))?;
                if length == 0 && out > 0 {
                    return Err(format!("axis {axis} is empty and has no elements to make {out} of"));
                }
                (all[axis].scale, all[axis].out) = (out as f32 / length.max(1) as f32, out);
            }
        }
        if scales.is_empty() && self.policy != Policy::Stretch {
            let ratios = named.iter().map(|&axis| all[axis].scale);
            let scale = match self.policy {
                Policy::NotSmaller => ratios.fold(0.0, f32::max),
                _ => ratios.fold(f32::INFINITY, f32::min),
            };
            for &axis in &named {
                (all[axis].scale, all[axis].out) = (scale, (scale * shape[axis] as f32 + 0.5) as usize);
            }
        }
        let shrinks = all.iter().any(|axis| axis.out < axis.length);
        if shrinks && self.mode == Mode::Nearest(Nearest::Old) {
            return Err(
                "mode=nearest with scales below 1 is not supported in the form before opset 11".to_owned()
            );
        }
        let count = element_count(&all.iter().map(|axis| axis.out).collect::<Vec<_>>());
        match count.is_some_and(|n| n <= VALUE_BYTES_MAX) {
            true => Ok(all),
            false => Err(format!("scales {scales:?} or sizes {sizes:?} of shape {shape:?} are too large")),
        }
    }

    /// The tables of every axis that changes.
    fn maps(&self, axes: &[Axis]) -> Vec<Option<AxisMap>> {
        let crops = self.coordinates == Coordinates::CropAndResize;
        let same =
            |axis: &Axis| axis.out == axis.length && axis.scale == 1.0 && (!crops || axis.roi == (0.0, 1.0));
        axes.iter().map(|axis| (!same(axis)).then(|| self.map(axis))).collect()
    }

    fn map(&self, axis: &Axis) -> AxisMap {
        let (taps, first) = self.taps(axis.scale);
        let mut map = AxisMap {
            length: axis.length,
            taps,
            places: Vec::with_capacity(axis.out * taps),
            weights: Vec::with_capacity(axis.out * taps),
            outside: Vec::new(),
        };
        let last = axis.length.saturating_sub(1) as f32;
        let mut weights = vec![0f32; taps];
        for o in 0..axis.out {
            let x = self.coordinates.original(o as f32, axis);
            if self.coordinates == Coordinates::CropAndResize {
                map.outside.push(x < 0.0 || x > last);
            }
            if let Mode::Nearest(nearest) = self.mode {
                // A cast saturates, so what is not a number or out of range is some element too.
                map.places.push((nearest.of(x).max(0.0) as usize).min(axis.length - 1));
                map.weights.push(1.0);
                continue;
            }
            let base = x.floor();
            self.weigh(x - base, first, axis.scale, &mut weights);
            let place = |tap: usize| (base as i64).saturating_add(first + tap as i64);
            let inside = |tap: usize| (0..axis.length as i64).contains(&place(tap));
            if self.exclude_outside {
                weights.iter_mut().enumerate().filter(|(tap, _)| !inside(*tap)).for_each(|(_, w)| *w = 0.0);
            }
            if self.exclude_outside || self.antialias {
                let sum: f32 = weights.iter().sum();
                weights.iter_mut().for_each(|w| *w /= if sum == 0.0 { 1.0 } else { sum });
            }
            map.places.extend((0..taps).map(|tap| place(tap).clamp(0, axis.length as i64 - 1) as usize));
            map.weights.extend(&weights);
        }
        map
    }

    /// How many neighbours make an element, and how far from the one before it the first of them stands.
    fn taps(&self, scale: f32) -> (usize, i64) {
        let reach = match self.mode {
            Mode::Nearest(_) => return (1, 0),
            Mode::Linear => 1.0,
            Mode::Cubic { .. } => 2.0,
        };
        // A filter that shrinks is as much wider.
        let first = (-reach / if self.antialias { scale.min(1.0) } else { 1.0 }).floor() as i64 + 1;
        ((2 - 2 * first) as usize, first)
    }

    /// Weights of the neighbours of a place `fraction` after an element.
    fn weigh(&self, fraction: f32, first: i64, scale: f32, weights: &mut [f32]) {
        let scale = if self.antialias { scale.min(1.0) } else { 1.0 };
        for (tap, weight) in weights.iter_mut().enumerate() {
            let distance = (((first + tap as i64) as f32 - fraction) * scale).abs();
            *weight = match self.mode {
                Mode::Cubic { a } => cubic(distance, a),
                _ => (1.0 - distance).max(0.0),
            };
        }
    }

    fn resized(&self, x: &TensorView<'_>, maps: &Maps) -> Result<Tensor, String> {
        let shape: Vec<usize> =
            x.shape.iter().zip(maps).map(|(&n, map)| map.as_ref().map_or(n, AxisMap::out)).collect();
        let mut made = Tensor::zeros(x.dtype, &shape);
        if made.is_empty() {
            return Ok(made);
        }
        if let Mode::Nearest(_) = self.mode {
            pick_bytes(x, maps, made.view_mut().bytes);
            match x.dtype {
                DType::F32 => fill_outside(made.slice_mut::<f32>(), &shape, maps, self.extrapolation),
                DType::F64 => fill_outside(made.slice_mut::<f64>(), &shape, maps, self.extrapolation.into()),
                _ if maps.iter().flatten().all(|m| m.outside.is_empty()) => {}
                other => return Err(format!("tf_crop_and_resize of {other} is not supported")),
            }
            return Ok(made);
        }
        match x.dtype {
            DType::F32 => self.blended(x.slice::<f32>(), x.shape, maps, made.slice_mut::<f32>(), &shape),
            DType::F64 => self.blended(x.slice::<f64>(), x.shape, maps, made.slice_mut::<f64>(), &shape),
            dtype => {
                let mut wide = vec![0f64; made.len()];
                self.blended(&reals::<f64>(x), x.shape, maps, &mut wide, &shape);
                made = rounded(dtype, &shape, &wide)?;
            }
        }
        Ok(made)
    }

    fn blended<T: Real>(&self, x: &[T], from: &[usize], maps: &Maps, out: &mut [T], to: &[usize]) {
        if maps.iter().all(Option::is_none) {
            return out.copy_from_slice(x);
        }
        blend(x, from, maps, out);
        fill_outside(out, to, maps, T::of(self.extrapolation.into()));
    }
}

/// Elements of any type, each taken as it is.
fn pick_bytes(x: &TensorView<'_>, maps: &Maps, out: &mut [u8]) {
    macro_rules! picked {
        ($t:ty) => {
            pick::<$t>(bytemuck::cast_slice(x.bytes), x.shape, maps, bytemuck::cast_slice_mut(out))
        };
    }
    match x.dtype.size() {
        1 => picked!(u8),
        2 => picked!(u16),
        4 => picked!(u32),
        _ => picked!(u64),
    }
}

/// Reals as integers: rounded to even, saturated.
fn rounded(dtype: DType, shape: &[usize], values: &[f64]) -> Result<Tensor, String> {
    macro_rules! cast {
        ($t:ty) => {
            // A cast of a float saturates.
            Ok(Tensor::from_slice(
                shape,
                &values.iter().map(|v| v.round_ties_even() as $t).collect::<Vec<_>>(),
            ))
        };
    }
    match dtype {
        DType::U8 => cast!(u8),
        DType::I8 => cast!(i8),
        DType::U16 => cast!(u16),
        DType::I16 => cast!(i16),
        DType::U32 => cast!(u32),
        DType::I32 => cast!(i32),
        DType::U64 => cast!(u64),
        DType::I64 => cast!(i64),
        other => Err(format!("a blend of {other} is not supported")),
    }
}

/// Keys' cubic kernel ("Cubic convolution interpolation for digital image processing", 1981), zero from 2 on.
fn cubic(distance: f32, a: f32) -> f32 {
    let d = distance;
    match d {
        d if d <= 1.0 => ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0,
        d if d < 2.0 => ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a,
        _ => 0.0,
    }
}

impl Nearest {
    fn of(self, x: f32) -> f32 {
        match self {
            Nearest::PreferFloor => (x - 0.5).ceil(),
            // What is negative becomes the first element whichever way it is rounded.
            Nearest::PreferCeil => x.round(),
            Nearest::Floor | Nearest::Old => x.floor(),
            Nearest::Ceil => x.ceil(),
        }
    }
}

impl Coordinates {
    /// The place that element `x` of the result has in the operand. In single precision, as ONNX Runtime has it:
    /// a place that falls on an element must not fall beside it, or nearest takes another.
    fn original(self, x: f32, axis: &Axis) -> f32 {
        let (length, scale) = (axis.length as f32, axis.scale);
        // May be a fraction, where the scale is given.
        let out = scale * length;
        let (start, end) = axis.roi;
        match self {
            Coordinates::HalfPixel => (x + 0.5) / scale - 0.5,
            Coordinates::HalfPixelSymmetric => {
                let offset = length / 2.0 * (1.0 - axis.out as f32 / out);
                offset + (x + 0.5) / scale - 0.5
            }
            Coordinates::PytorchHalfPixel if axis.out <= 1 => 0.0,
            Coordinates::PytorchHalfPixel => (x + 0.5) / scale - 0.5,
            Coordinates::AlignCorners if axis.out <= 1 || out == 1.0 => 0.0,
            Coordinates::AlignCorners => x * (length - 1.0) / (out - 1.0),
            Coordinates::Asymmetric => x / scale,
            Coordinates::CropAndResize if axis.out <= 1 => 0.5 * (start + end) * (length - 1.0),
            Coordinates::CropAndResize => {
                start * (length - 1.0) + x * (end - start) * (length - 1.0) / (axis.out as f32 - 1.0)
            }
            Coordinates::HalfPixelForNearest => (x + 0.5) / scale,
        }
    }
}

/// A list that may be left out, as facts and views have it.
fn known<'a>(inputs: &[Option<&'a Fact>], index: usize, what: &str) -> Result<Option<&'a Tensor>, Unfit> {
    match operand(inputs, index) {
        None => Ok(None),
        // A list without elements stands for none, known or not.
        Some(fact) if fact.shape.contains(&0) => Ok(None),
        Some(fact) => match fact.constant.as_deref() {
            Some(tensor) => Ok(Some(tensor)),
            None => Err(Unfit::AtRun(what.to_owned())),
        },
    }
}

fn floats(x: Option<TensorView<'_>>) -> Vec<f32> {
    x.map_or_else(Vec::new, |x| reals::<f32>(&x))
}

impl Operator for Resize {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let x = needed(inputs, 0)?;
        let scales = known(inputs, 2, "scales")?.map(Tensor::view);
        let sizes = known(inputs, 3, "sizes")?.map_or_else(Vec::new, Tensor::to_i64);
        let axes = self.axes(&x.shape, &[], &floats(scales), &sizes)?;
        Ok(vec![(x.dtype, axes.iter().map(|axis| axis.out).collect())])
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let x = given(inputs, 0)?;
        let sizes = optional(inputs, 3).map_or_else(Vec::new, |s| s.to_tensor().to_i64());
        let (roi, scales) = (floats(optional(inputs, 1)), floats(optional(inputs, 2)));
        let axes = self.axes(x.shape, &roi, &scales, &sizes)?;
        if axes.iter().any(|axis| axis.out == 0) {
            return Ok(vec![Tensor::zeros(x.dtype, &axes.iter().map(|axis| axis.out).collect::<Vec<_>>())]);
        }
        Ok(vec![self.resized(&x, &self.maps(&axes))?])
    }

    fn prepare(&self, inputs: &[Option<&Fact>]) -> Option<Prepared> {
        let (maps, this) = (self.constant_maps(inputs)?, self.clone());
        Some(Box::new(move |inputs, _| Ok(vec![this.resized(&given(inputs, 0)?, &maps)?])))
    }

    fn writer(&self, inputs: &[Option<&Fact>], channels_last: bool) -> Option<Writer> {
        let Mode::Nearest(_) = self.mode else { return None };
        let mut maps = self.constant_maps(inputs)?;
        if maps.iter().flatten().any(|map| !map.outside.is_empty()) {
            return None;
        }
        if channels_last && maps.len() > 2 {
            maps[1..].rotate_left(1);
        }
        Some(Box::new(move |x, out| pick_bytes(x, &maps, out)))
    }

    fn opset(&self) -> i64 {
        self.opset
    }
}

impl Resize {
    /// The tables of every axis, where all that they depend on is known.
    fn constant_maps(&self, inputs: &[Option<&Fact>]) -> Option<Vec<Option<AxisMap>>> {
        let x = needed(inputs, 0).ok()?;
        let roi = match self.coordinates {
            Coordinates::CropAndResize => floats(known(inputs, 1, "roi").ok()?.map(Tensor::view)),
            _ => Vec::new(),
        };
        let scales = floats(known(inputs, 2, "scales").ok()?.map(Tensor::view));
        let sizes = known(inputs, 3, "sizes").ok()?.map_or_else(Vec::new, Tensor::to_i64);
        let axes = self.axes(&x.shape, &roi, &scales, &sizes).ok()?;
        if axes.iter().any(|axis| axis.out == 0) {
            return None;
        }
        Some(self.maps(&axes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(mode: Mode, coordinates: Coordinates) -> Resize {
        Resize {
            mode,
            coordinates,
            exclude_outside: false,
            extrapolation: 0.0,
            antialias: false,
            policy: Policy::Stretch,
            axes: None,
            opset: 13,
        }
    }

    fn line(resize: &Resize, x: &[f32], scale: f32) -> Vec<f32> {
        let x = Tensor::from_slice(&[x.len()], x);
        let scales = Tensor::from_slice(&[1], &[scale]);
        let made = resize.run(&[Some(x.view()), None, Some(scales.view())], 1).unwrap();
        made[0].slice::<f32>().to_vec()
    }

    #[test]
    fn a_line_is_resized_as_onnx_has_it() {
        let x = [1.0, 2.0, 3.0, 4.0];
        let nearest = of(Mode::Nearest(Nearest::Floor), Coordinates::Asymmetric);
        assert_eq!(line(&nearest, &x, 2.0), [1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0]);
        let nearest = of(Mode::Nearest(Nearest::PreferFloor), Coordinates::HalfPixel);
        assert_eq!(line(&nearest, &x, 0.5), [1.0, 3.0]);
        let nearest = of(Mode::Nearest(Nearest::PreferCeil), Coordinates::HalfPixel);
        assert_eq!(line(&nearest, &x, 0.5), [2.0, 4.0]);
        let linear = of(Mode::Linear, Coordinates::HalfPixel);
        assert_eq!(line(&linear, &[1.0, 3.0], 2.0), [1.0, 1.5, 2.5, 3.0]);
        let linear = of(Mode::Linear, Coordinates::AlignCorners);
        assert_eq!(line(&linear, &[1.0, 4.0], 2.0), [1.0, 2.0, 3.0, 4.0]);
    }

    #[test]
    fn weights_of_a_wider_filter_sum_to_one() {
        for mode in [Mode::Linear, Mode::Cubic { a: -0.5 }] {
            let resize = Resize { antialias: true, ..of(mode, Coordinates::HalfPixel) };
            let map = resize.map(&Axis { length: 100, out: 7, scale: 0.07, roi: (0.0, 1.0) });
            for weights in map.weights.chunks(map.taps) {
                assert!((weights.iter().sum::<f32>() - 1.0).abs() < 1e-6, "{mode:?} {weights:?}");
            }
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let resize = of(Mode::Linear, Coordinates::HalfPixel);
        assert!(resize.axes(&[4], &[], &[0.0], &[]).is_err());
        assert!(resize.axes(&[4], &[], &[f32::NAN], &[]).is_err());
        assert!(resize.axes(&[4], &[], &[], &[-1]).is_err());
        assert!(resize.axes(&[0], &[], &[], &[3]).is_err());
        assert!(resize.axes(&[4, 4], &[], &[2.0], &[]).is_err());
        assert!(resize.axes(&[4, 4], &[], &[1e30, 1e30], &[]).is_err());
        let old = of(Mode::Nearest(Nearest::Old), Coordinates::Asymmetric);
        assert!(old.axes(&[4], &[], &[0.5], &[]).is_err_and(|e| e.contains("before opset 11")));
    }
}
