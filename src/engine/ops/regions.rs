//! Operators on boxes in images: NonMaxSuppression keeps the best ones, RoiAlign reads features out of them.

use std::cmp::Ordering;

use crate::engine::graph::fact::{Fact, Results, Unfit, needed};
use crate::engine::graph::operator::{Call, Operator};
use crate::engine::tensor::{DType, Tensor, TensorView};

use super::gather::{indices, integers, place};
use super::number::of_f64;
use super::real::given;
use super::{Entry, Made};

pub(super) const OPERATORS: &[Entry] = &[("", "NonMaxSuppression", suppression), ("", "RoiAlign", roi_align)];

/// `boxes [batch, n, 4], scores [batch, classes, n] [, most a class] [, IoU] [, score]`: of the boxes of each class,
/// best first, those that overlap no better one by more than the IoU; `[kept, 3]`: batch, class, box.
#[derive(Debug)]
struct Suppression {
    /// Boxes are centre and size, not two corners.
    centered: bool,
}

fn suppression(call: &Call<'_>) -> Result<Made, String> {
    Ok(Made::new(Suppression { centered: call.attributes.flag("center_point_box", false)? }))
}

/// Lower and upper corner; the axes are y and x in the order of the file.
#[derive(Clone, Copy)]
struct Rectangle {
    low: [f32; 2],
    high: [f32; 2],
}

impl Rectangle {
    fn new(&[a, b, c, d]: &[f32; 4], centered: bool) -> Rectangle {
        match centered {
            true => Rectangle { low: [a - c / 2.0, b - d / 2.0], high: [a + c / 2.0, b + d / 2.0] },
            // Any two opposite corners.
            false => Rectangle { low: [a.min(c), b.min(d)], high: [a.max(c), b.max(d)] },
        }
    }

    fn area(&self) -> f32 {
        (self.high[0] - self.low[0]) * (self.high[1] - self.low[1])
    }

    /// Whether the intersection is more than a part of the union.
    fn overlaps(&self, other: &Rectangle, part: f32) -> bool {
        let side = |i: usize| self.high[i].min(other.high[i]) - self.low[i].max(other.low[i]);
        let (height, width) = (side(0), side(1));
        if height <= 0.0 || width <= 0.0 || self.area() <= 0.0 || other.area() <= 0.0 {
            return false;
        }
        let common = height * width;
        common / (self.area() + other.area() - common) > part
    }
}

/// The one number of an operand that may be left out.
fn number(inputs: &[Option<TensorView<'_>>], index: usize) -> Option<f64> {
    inputs.get(index).copied().flatten().and_then(|x| x.to_f64().first().copied())
}

impl Operator for Suppression {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let (boxes, scores) = (needed(inputs, 0)?, needed(inputs, 1)?);
        let fits = match (&boxes.shape[..], &scores.shape[..]) {
            (&[batch, n, 4], &[of, _, scored]) => batch == of && n == scored,
            _ => false,
        };
        let real = |x: &Fact| matches!(x.dtype, DType::F32 | DType::F16 | DType::BF16);
        match fits && real(boxes) && real(scores) {
            true => Err(Unfit::AtRun("boxes".to_owned())),
            false => Err(format!(
                "boxes {}{:?} and scores {}{:?} do not fit",
                boxes.dtype, boxes.shape, scores.dtype, scores.shape
            )
            .into()),
        }
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let (boxes, scores) = (given(inputs, 0)?, given(inputs, 1)?);
        let most = number(inputs, 2).unwrap_or(0.0).max(0.0) as usize;
        let part = number(inputs, 3).unwrap_or(0.0) as f32;
        let least = number(inputs, 4).map(|least| least as f32);
        let &[_, classes, n] = scores.shape else { return Err("scores have not three axes".to_owned()) };
        let mut kept: Vec<i64> = Vec::new();
        if most == 0 || scores.is_empty() {
            return Ok(vec![Tensor::from_slice(&[0, 3], &kept)]);
        }
        let (boxes, _) = boxes.slice::<f32>().as_chunks::<4>();
        let boxes: Vec<Rectangle> = boxes.iter().map(|b| Rectangle::new(b, self.centered)).collect();
        let (mut order, mut chosen): (Vec<usize>, Vec<usize>) = (Vec::new(), Vec::new());
        for (line, scores) in scores.slice::<f32>().chunks_exact(n).enumerate() {
            let boxes = &boxes[line / classes * n..][..n];
            order.clear();
            order.extend((0..n).filter(|&i| least.is_none_or(|least| scores[i] > least)));
            // Best first; of equal scores the first box.
            order.sort_by(|&a, &b| {
                scores[b].partial_cmp(&scores[a]).unwrap_or(Ordering::Equal).then(a.cmp(&b))
            });
            chosen.clear();
            for &i in &order {
                if chosen.len() == most {
                    break;
                }
                if !chosen.iter().any(|&better| boxes[i].overlaps(&boxes[better], part)) {
                    chosen.push(i);
                }
            }
            for &i in &chosen {
                kept.extend([(line / classes) as i64, (line % classes) as i64, i as i64]);
            }
        }
        Ok(vec![Tensor::from_slice(&[kept.len() / 3, 3], &kept)])
    }
}

/// Most sample points of one region: more of them come of a box that is no box.
const POINTS_MAX: usize = 1 << 22;

/// `x [batch, channels, h, w], regions [n, 4], images [n]`: each region (two corners, x before y) of its image pooled
/// to `out` bins, bilinearly sampled; `[n, channels, out]`.
#[derive(Debug)]
struct RoiAlign {
    max: bool,
    /// Whether pixels are half a pixel from their corner.
    half_pixel: bool,
    out: [usize; 2],
    /// Sample points a bin along each axis; 0: as many as a bin has pixels.
    sampling: usize,
    scale: f64,
}

fn roi_align(call: &Call<'_>) -> Result<Made, String> {
    let a = call.attributes;
    let max = match a.text_or("mode", "avg")? {
        "avg" => false,
        "max" => true,
        other => return Err(format!("mode={other} is not supported")),
    };
    // Opset 16 made half pixels the default.
    let name = "coordinate_transformation_mode";
    let mode = a.text_or(name, if call.opset < 16 { "output_half_pixel" } else { "half_pixel" })?;
    let half_pixel = match mode {
        "half_pixel" => true,
        "output_half_pixel" => false,
        other => return Err(format!("{name}={other} is not supported")),
    };
    let size = |name: &str, default: i64, least: i64| -> Result<usize, String> {
        let given = a.int_or(name, default)?;
        let size = u16::try_from(given).ok().filter(|_| given >= least);
        size.map(usize::from).ok_or_else(|| format!("{name}={given} is not supported"))
    };
    let out = [size("output_height", 1, 1)?, size("output_width", 1, 1)?];
    let sampling = size("sampling_ratio", 0, 0)?;
    let scale = a.float_or("spatial_scale", 1.0)?.into();
    Ok(Made::new(RoiAlign { max, half_pixel, out, sampling, scale }).renamed("RoiAlign", &[(name, mode)]))
}

/// A sample point: its four pixels and their weights.
type Point = [(usize, f64); 4];

impl RoiAlign {
    /// The sample points of each bin of a region, as many a bin.
    fn points(&self, region: &[f64], [height, width]: [usize; 2]) -> Result<(Vec<Point>, usize), String> {
        let offset = if self.half_pixel { 0.5 } else { 0.0 };
        let corner = |i: usize| region[i] * self.scale - offset;
        let starts = [corner(1), corner(0)];
        // Old regions are never smaller than a pixel.
        let least = if self.half_pixel { f64::NEG_INFINITY } else { 1.0 };
        let bins: [f64; 2] =
            std::array::from_fn(|i| (corner(3 - i) - starts[i]).max(least) / self.out[i] as f64);
        let counts =
            bins.map(|bin| if self.sampling > 0 { self.sampling } else { bin.ceil().max(0.0) as usize });
        let a_bin = counts[0].checked_mul(counts[1]);
        let total = a_bin.and_then(|n| n.checked_mul(self.out[0] * self.out[1]));
        let (Some(a_bin), Some(_)) = (a_bin, total.filter(|&n| n <= POINTS_MAX)) else {
            return Err(format!("region {region:?} has more than {POINTS_MAX} sample points"));
        };
        let at = |axis: usize, bin: usize, i: usize| {
            starts[axis] + (bin as f64 + (i as f64 + 0.5) / counts[axis] as f64) * bins[axis]
        };
        let mut points = Vec::with_capacity(total.unwrap_or(0));
        for row in 0..self.out[0] {
            for column in 0..self.out[1] {
                for i in 0..counts[0] {
                    for j in 0..counts[1] {
                        points.push(point(at(0, row, i), at(1, column, j), height, width));
                    }
                }
            }
        }
        Ok((points, a_bin))
    }
}

/// The pixels around a point; none where it lies more than a pixel outside.
fn point(y: f64, x: f64, height: usize, width: usize) -> Point {
    let inside = (-1.0..=height as f64).contains(&y) && (-1.0..=width as f64).contains(&x);
    if !inside {
        return [(0, 0.0); 4];
    }
    let along = |at: f64, length: usize| {
        let at = at.max(0.0);
        let low = at as usize;
        match low + 1 < length {
            true => (low, low + 1, at - low as f64),
            false => (length - 1, length - 1, 0.0),
        }
    };
    let ((top, bottom, down), (left, right, across)) = (along(y, height), along(x, width));
    [
        (top * width + left, (1.0 - down) * (1.0 - across)),
        (top * width + right, (1.0 - down) * across),
        (bottom * width + left, down * (1.0 - across)),
        (bottom * width + right, down * across),
    ]
}

impl Operator for RoiAlign {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let (x, regions, images) = (needed(inputs, 0)?, needed(inputs, 1)?, indices(inputs, 2)?);
        let real = matches!(x.dtype, DType::F32 | DType::F64 | DType::F16 | DType::BF16);
        match (&x.shape[..], &regions.shape[..], &images.shape[..]) {
            (&[_, channels, h, w], &[n, 4], &[of]) if n == of && real && h > 0 && w > 0 => {
                Ok(vec![(x.dtype, vec![n, channels, self.out[0], self.out[1]])])
            }
            _ => Err(format!("{:?}, {:?} and {:?} do not fit", x.shape, regions.shape, images.shape).into()),
        }
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let (x, regions, images) = (given(inputs, 0)?, given(inputs, 1)?, given(inputs, 2)?);
        let &[batch, channels, height, width] = x.shape else { return Err("x has not four axes".to_owned()) };
        let (values, images) = (x.to_f64(), integers(&images)?);
        let mut made = Vec::with_capacity(images.len() * channels * self.out[0] * self.out[1]);
        for (region, &image) in regions.to_f64().chunks_exact(4).zip(images.iter()) {
            let image = place(image, batch)?;
            let (points, a_bin) = self.points(region, [height, width])?;
            for channel in 0..channels {
                let plane = &values[(image * channels + channel) * height * width..][..height * width];
                if a_bin == 0 {
                    made.extend(std::iter::repeat_n(0.0, self.out[0] * self.out[1]));
                }
                made.extend(points.chunks_exact(a_bin.max(1)).map(|points| self.pooled(points, plane)));
            }
        }
        let shape = [images.len(), channels, self.out[0], self.out[1]];
        Ok(vec![of_f64(x.dtype, &shape, &made)?])
    }

    fn opset(&self) -> i64 {
        16
    }
}

impl RoiAlign {
    /// One bin. The maximum is that of the weighted pixels, not of the sample points: so does ONNX Runtime, and the
    /// reference of the standard.
    fn pooled(&self, points: &[Point], plane: &[f64]) -> f64 {
        let pixels = points.iter().flatten().map(|&(at, weight)| weight * plane[at]);
        match self.max {
            true => pixels.fold(f64::NEG_INFINITY, f64::max),
            false => pixels.sum::<f64>() / points.len() as f64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_boxes_that_overlap_the_best_is_kept() {
        let boxes =
            [[0.0f32, 0.0, 1.0, 1.0], [1.0, 1.1, 0.0, 0.1], [0.0, 10.0, 1.0, 11.0], [0.0, 0.0, 0.0, 0.0]];
        let boxes = Tensor::from_slice(&[1, 4, 4], boxes.as_flattened());
        let scores = Tensor::from_slice(&[1, 2, 4], &[0.9f32, 0.95, 0.5, 0.1, 0.2, 0.1, 0.2, 0.1]);
        let of = |most: i64, part: f32, least: f32| {
            let rest = [Tensor::scalar(most), Tensor::scalar(part), Tensor::scalar(least)];
            let views: Vec<_> = [&boxes, &scores].into_iter().chain(&rest).map(|t| Some(t.view())).collect();
            let made = Suppression { centered: false }.run(&views, 1).unwrap();
            made[0].slice::<i64>().to_vec()
        };
        assert_eq!(of(2, 0.5, 0.15), [0, 0, 1, 0, 0, 2, 0, 1, 0, 0, 1, 2]);
        assert_eq!(of(1, 0.5, 0.6), [0, 0, 1]);
        assert_eq!(of(9, 0.9, 0.6), [0, 0, 1, 0, 0, 0]);
        assert!(of(0, 0.5, 0.0).is_empty());
    }

    #[test]
    fn a_region_is_the_mean_of_its_samples() {
        let x: Vec<f32> = (0..16).map(|i| i as f32).collect();
        let x = Tensor::from_slice(&[1, 1, 4, 4], &x);
        let of = |region: [f32; 4], half_pixel| {
            let regions = Tensor::from_slice(&[1, 4], &region);
            let images = Tensor::from_slice(&[1], &[0i64]);
            let operator = RoiAlign { max: false, half_pixel, out: [1, 1], sampling: 2, scale: 1.0 };
            let views: Vec<_> = [&x, &regions, &images].into_iter().map(|t| Some(t.view())).collect();
            operator.run(&views, 1).map(|made| made[0].slice::<f32>()[0])
        };
        // The middle of a linear ramp is its mean.
        assert_eq!(of([1.0, 1.0, 3.0, 3.0], false), Ok(10.0));
        assert_eq!(of([1.0, 1.0, 3.0, 3.0], true), Ok(7.5));
        let wide = RoiAlign { max: true, half_pixel: true, out: [1, 1], sampling: 0, scale: 1.0 };
        assert!(wide.points(&[0.0, 0.0, 1e30, 1e30], [4, 4]).is_err());
        assert!(wide.points(&[f64::NAN; 4], [4, 4]).is_ok());
    }
}
