//! Col2Im, and what ConvTranspose shares with it: windows laid over an image, what overlaps being summed.

use std::ops::Range;

use crate::engine::graph::fact::{Fact, Results, Unfit, constant_ints, needed};
use crate::engine::graph::op::Sliding;
use crate::engine::graph::operator::{Call, Operator};
use crate::engine::graph::shapes::{VALUE_BYTES_MAX, Windows, windows};
use crate::engine::tensor::{Tensor, TensorView, element_count};

use super::real::{Real, elements, given, made_in_chunks, with_real};
use super::{Entry, Made};

pub(super) const OPERATORS: &[Entry] = &[("", "Col2Im", col2im)];

/// Adds the elements of windows to an image: `columns` is `[taps, windows]`, the windows being those of some `lines`
/// (all axes but the last are one); `image` is one channel of shape `spatial`. Tap `k` of window `w` is added to
/// element `w · stride + k · dilation − begin` of each axis, or to none where that lies outside.
pub(super) fn add_windows<T: Real>(
    columns: &[T],
    lines: Range<usize>,
    geometry: &Windows,
    spatial: &[usize],
    image: &mut [T],
) {
    let last = spatial.len() - 1;
    let (count, width) = (geometry.out[last], spatial[last]);
    if lines.is_empty() || count == 0 {
        return;
    }
    let stride = geometry.strides[last];
    for (tap, column) in columns.chunks_exact(lines.len() * count).enumerate() {
        let tap = split_index(tap, &geometry.kernel);
        // Element of window 0, and the windows whose element lies inside.
        let offset = (tap[last] * geometry.dilations[last]) as isize - geometry.begin[last] as isize;
        let first = if offset < 0 { offset.unsigned_abs().div_ceil(stride) } else { 0 };
        let end = (width as isize - offset).max(0) as usize;
        let end = end.div_ceil(stride).min(count);
        if first >= end {
            continue;
        }
        let start = (first * stride) as isize + offset;
        for (line, values) in lines.clone().zip(column.chunks_exact(count)) {
            let Some(row) = line_of(line, &tap, geometry, spatial) else { continue };
            let row = &mut image[row * width..][..width][start as usize..];
            let values = &values[first..end];
            if stride == 1 {
                row.iter_mut().zip(values).for_each(|(y, &v)| *y += v);
            } else {
                row.iter_mut().step_by(stride).zip(values).for_each(|(y, &v)| *y += v);
            }
        }
    }
}

/// The line of the image that one tap of a line of windows falls on.
fn line_of(line: usize, tap: &[usize], geometry: &Windows, spatial: &[usize]) -> Option<usize> {
    let last = spatial.len() - 1;
    let mut rest = line;
    let (mut row, mut size) = (0, 1);
    for axis in (0..last).rev() {
        let window = rest % geometry.out[axis];
        rest /= geometry.out[axis];
        let at = window * geometry.strides[axis] + tap[axis] * geometry.dilations[axis];
        let at = at.checked_sub(geometry.begin[axis]).filter(|&at| at < spatial[axis])?;
        row += at * size;
        size *= spatial[axis];
    }
    Some(row)
}

/// The index along each axis of element `flat`.
fn split_index(mut flat: usize, shape: &[usize]) -> Vec<usize> {
    let mut index = vec![0; shape.len()];
    for (i, &length) in index.iter_mut().zip(shape).rev() {
        *i = flat % length;
        flat /= length;
    }
    index
}

/// `x [N, C · taps, windows], image_shape, block_shape`: the image `[N, C, …]` whose windows `x` has, overlaps summed.
#[derive(Debug)]
struct Col2Im {
    sliding: Sliding,
}

fn col2im(call: &Call<'_>) -> Result<Made, String> {
    let sliding = Sliding::read(call.attributes)?;
    Ok(Made::new(Col2Im { sliding }))
}

impl Col2Im {
    /// The spatial shape of the image, and the windows over it.
    fn geometry(&self, image: &[i64], block: &[i64]) -> Result<(Vec<usize>, Windows), String> {
        let sizes = |list: &[i64], what: &str| -> Result<Vec<usize>, String> {
            let positive = |&i: &i64| usize::try_from(i).ok().filter(|&n| n > 0);
            let sizes: Option<Vec<usize>> = list.iter().map(positive).collect();
            sizes.filter(|s| !s.is_empty()).ok_or_else(|| format!("{what} {list:?} makes no sense"))
        };
        let (image, block) = (sizes(image, "image_shape")?, sizes(block, "block_shape")?);
        let geometry = windows(&self.sliding, &image, &block)?;
        Ok((image, geometry))
    }

    fn shape(x: &[usize], image: &[usize], geometry: &Windows) -> Result<Vec<usize>, String> {
        let misfit =
            || format!("shape {x:?} does not fit an image of {image:?} with blocks of {:?}", geometry.kernel);
        let taps = element_count(&geometry.kernel).ok_or_else(misfit)?;
        let count = element_count(&geometry.out).ok_or_else(misfit)?;
        let [batch, rows, length] = x[..] else { return Err(misfit()) };
        if length != count || !rows.is_multiple_of(taps) {
            return Err(misfit());
        }
        let shape = [&[batch, rows / taps], image].concat();
        match element_count(&shape).is_some_and(|n| n <= VALUE_BYTES_MAX) {
            true => Ok(shape),
            false => Err(misfit()),
        }
    }
}

impl Operator for Col2Im {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let x = needed(inputs, 0)?;
        let (image, block) =
            (constant_ints(inputs, 1, "image_shape")?, constant_ints(inputs, 2, "block_shape")?);
        let (image, geometry) = self.geometry(&image, &block)?;
        Ok(vec![(x.dtype, Self::shape(&x.shape, &image, &geometry)?)])
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let x = given(inputs, 0)?;
        let (image, block) = (given(inputs, 1)?.to_tensor().to_i64(), given(inputs, 2)?.to_tensor().to_i64());
        let (image, geometry) = self.geometry(&image, &block)?;
        let shape = Self::shape(x.shape, &image, &geometry)?;
        let column = geometry.kernel.iter().product::<usize>() * x.shape[2];
        with_real!(x.dtype, T => {
            let values = elements::<T>(&x)?;
            let pixels: usize = image.iter().product();
            let lines = geometry.out[..image.len() - 1].iter().product();
            Ok(vec![made_in_chunks::<T>(&shape, pixels, column, |channel, out| {
                add_windows(&values[channel * column..][..column], 0..lines, &geometry, &image, out);
            })])
        })
    }

    fn opset(&self) -> i64 {
        18
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What one window a pixel adds up to: how many windows cover each pixel.
    fn check(image: &[i64], block: &[i64], sliding: Sliding, want: &[f32]) {
        let op = Col2Im { sliding };
        let (spatial, geometry) = op.geometry(image, block).unwrap();
        let (taps, count) = (block.iter().product::<i64>() as usize, geometry.out.iter().product::<usize>());
        let mut out = vec![0f32; spatial.iter().product()];
        let lines = count / geometry.out[spatial.len() - 1];
        add_windows(&vec![1f32; taps * count], 0..lines, &geometry, &spatial, &mut out);
        assert_eq!(out, want, "{image:?} {block:?}");
    }

    #[test]
    fn every_pixel_gets_the_windows_that_cover_it() {
        let plain = Sliding::default;
        check(&[4], &[2], plain(), &[1.0, 2.0, 2.0, 1.0]);
        check(&[2, 3], &[2, 2], plain(), &[1.0, 2.0, 1.0, 1.0, 2.0, 1.0]);
        check(&[3], &[3], Sliding { pads: vec![1, 1], ..plain() }, &[2.0, 3.0, 2.0]);
        check(&[5], &[2], Sliding { strides: vec![3], ..plain() }, &[1.0, 1.0, 0.0, 1.0, 1.0]);
        check(&[5], &[2], Sliding { dilations: vec![4], ..plain() }, &[1.0, 0.0, 0.0, 0.0, 1.0]);
        check(&[1, 2, 2], &[1, 2, 1], plain(), &[1.0; 4]);
    }

    #[test]
    fn an_image_that_does_not_fit_is_refused() {
        let op = Col2Im { sliding: Sliding::default() };
        assert!(op.geometry(&[-1], &[2]).is_err());
        assert!(op.geometry(&[4], &[5]).is_err());
        assert!(op.geometry(&[], &[]).is_err());
        let (image, geometry) = op.geometry(&[4], &[2]).unwrap();
        assert!(Col2Im::shape(&[1, 3, 3], &image, &geometry).is_err());
        assert!(Col2Im::shape(&[1, 4, 4], &image, &geometry).is_err());
        assert_eq!(Col2Im::shape(&[1, 4, 3], &image, &geometry), Ok(vec![1, 2, 4]));
    }
}
