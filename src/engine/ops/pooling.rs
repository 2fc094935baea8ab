//! Poolings beside the plain ones: the place of the largest element, norms, and the way back.

use crate::engine::graph::fact::{Fact, Results, Unfit, constant_ints, needed, operand};
use crate::engine::graph::op::Sliding;
use crate::engine::graph::operator::{Call, Operator};
use crate::engine::graph::reach::Reach;
use crate::engine::graph::shapes::{VALUE_BYTES_MAX, Windows, windows};
use crate::engine::tensor::{DType, Element, Tensor, TensorView, element_count};

use super::real::{Real, elements, given, made_in_chunks, optional, with_real};
use super::typed::{with_number, with_type};
use super::{Entry, Made};

pub(super) const OPERATORS: &[Entry] = &[
    ("", "MaxPool", max_pool),
    ("", "LpPool", lp_pool),
    ("", "GlobalLpPool", global_lp_pool),
    ("", "MaxUnpool", max_unpool),
];

/// The windows over an image `[N, C, …]`, and the shape of the result.
fn pooled(sliding: &Sliding, x: &[usize]) -> Result<(Windows, Vec<usize>), String> {
    if x.len() < 3 {
        return Err(format!("the input has shape {x:?}, at least 3 dimensions are needed"));
    }
    let windows = windows(sliding, &x[2..], &sliding.kernel)?;
    let shape = [&x[..2], windows.out.as_slice()].concat();
    Ok((windows, shape))
}

/// `x [N, C, …]`: the largest element of each window, and its place in `x`, counted over the whole tensor; within one
/// channel by columns where `by_column`.
#[derive(Debug)]
struct MaxPool {
    sliding: Sliding,
    by_column: bool,
}

fn max_pool(call: &Call<'_>) -> Result<Made, String> {
    let by_column = call.attributes.flag("storage_order", false)?;
    Ok(Made::new(MaxPool { sliding: Sliding::read(call.attributes)?, by_column }))
}

impl Operator for MaxPool {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let x = needed(inputs, 0)?;
        let (_, shape) = pooled(&self.sliding, &x.shape)?;
        Ok(vec![(x.dtype, shape.clone()), (DType::I64, shape)])
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let x = given(inputs, 0)?;
        let (windows, shape) = pooled(&self.sliding, x.shape)?;
        with_number!(x.dtype, T => Ok(self.places::<T>(&x, &windows, &shape)))
    }
}

impl MaxPool {
    fn places<T: Element + PartialOrd>(
        &self,
        x: &TensorView<'_>,
        windows: &Windows,
        shape: &[usize],
    ) -> Vec<Tensor> {
        let spatial = &x.shape[2..];
        let reach = Reach::new(windows, spatial);
        let (area, count) = (spatial.iter().product::<usize>(), reach.windows());
        let taps: usize = windows.kernel.iter().product();
        let values = x.slice::<T>();
        let places = made_in_chunks::<i64>(shape, count, count.saturating_mul(taps), |channel, places| {
            let values = &values[channel * area..][..area];
            for (window, place) in places.iter_mut().enumerate() {
                let mut best: Option<usize> = None;
                reach.for_each(&reach.index(window), &windows.kernel, |_, element| {
                    if best.is_none_or(|best| values[element] > values[best]) {
                        best = Some(element);
                    }
                });
                // A window of nothing but padding has no place.
                *place = best.map_or(-1, |best| (channel * area + best) as i64);
            }
        });
        let mut largest = Tensor::zeros(x.dtype, shape);
        for (y, &place) in largest.slice_mut::<T>().iter_mut().zip(places.slice::<i64>()) {
            if place >= 0 {
                *y = values[place as usize];
            }
        }
        let places = if self.by_column { by_column(places, spatial, area) } else { places };
        vec![largest, places]
    }
}

/// Places counted with the first spatial axis running fastest.
fn by_column(mut places: Tensor, spatial: &[usize], area: usize) -> Tensor {
    for place in places.slice_mut::<i64>().iter_mut().filter(|place| **place >= 0) {
        let (channel, mut rest) = (*place as usize / area, *place as usize % area);
        let mut step = area;
        let mut moved = channel * area;
        for &length in spatial.iter().rev() {
            step /= length;
            moved += rest % length * step;
            rest /= length;
        }
        *place = moved as i64;
    }
    places
}

/// `x [N, C, …]`: the `order`-norm of each window; of each channel where there is no window.
#[derive(Debug)]
struct LpPool {
    sliding: Option<Sliding>,
    order: f64,
}

fn order(call: &Call<'_>) -> Result<f64, String> {
    // A float in opset 1.
    let order = if call.opset < 2 {
        call.attributes.float_or("p", 2.0)?.into()
    } else {
        call.attributes.int_or("p", 2)? as f64
    };
    match order > 0.0 {
        true => Ok(order),
        false => Err(format!("p={order} is not supported")),
    }
}

fn lp_pool(call: &Call<'_>) -> Result<Made, String> {
    let sliding = Some(Sliding::read(call.attributes)?);
    Ok(Made::new(LpPool { sliding, order: order(call)? }))
}

fn global_lp_pool(call: &Call<'_>) -> Result<Made, String> {
    Ok(Made::new(LpPool { sliding: None, order: order(call)? }))
}

impl LpPool {
    fn pooled(&self, x: &[usize]) -> Result<(Windows, Vec<usize>), String> {
        match &self.sliding {
            Some(sliding) => pooled(sliding, x),
            None => {
                let kernel = x.get(2..).unwrap_or(&[]).to_vec();
                match kernel.contains(&0) {
                    true => Err(format!("the input has shape {x:?}: there is nothing to pool")),
                    false => pooled(&Sliding { kernel, ..Sliding::default() }, x),
                }
            }
        }
    }
}

impl Operator for LpPool {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let x = needed(inputs, 0)?;
        Ok(vec![(x.dtype, self.pooled(&x.shape)?.1)])
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let x = given(inputs, 0)?;
        let (windows, shape) = self.pooled(x.shape)?;
        let reach = Reach::new(&windows, &x.shape[2..]);
        let (area, count) = (x.shape[2..].iter().product::<usize>(), reach.windows());
        let taps: usize = windows.kernel.iter().product();
        let power = |v: f64| match self.order {
            1.0 => v.abs(),
            2.0 => v * v,
            order => v.abs().powf(order),
        };
        with_real!(x.dtype, T => {
            let values = elements::<T>(&x)?;
            Ok(vec![made_in_chunks::<T>(&shape, count, count.saturating_mul(taps), |channel, out| {
                let values = &values[channel * area..][..area];
                for (window, y) in out.iter_mut().enumerate() {
                    let mut sum = 0f64;
                    reach.for_each(&reach.index(window), &windows.kernel, |_, element| {
                        sum += power(values[element].wide());
                    });
                    *y = T::of(sum.powf(1.0 / self.order));
                }
            })])
        })
    }

    fn opset(&self) -> i64 {
        18
    }
}

/// `x, places [, shape]`: zeros of `shape`, and each element of `x` at its place, counted over the whole result.
///
/// Places are counted in the result, as MaxPool counts them in its operand and as ONNX Runtime reads them. (The
/// example in ONNX's own tests counts them in a smaller image in the corner of the result.)
#[derive(Debug)]
struct MaxUnpool {
    sliding: Sliding,
}

fn max_unpool(call: &Call<'_>) -> Result<Made, String> {
    Ok(Made::new(MaxUnpool { sliding: Sliding::read(call.attributes)? }))
}

impl MaxUnpool {
    /// The smallest image that such windows fill, or the one that is asked for.
    fn shape(&self, x: &[usize], wanted: Option<&[i64]>) -> Result<Vec<usize>, String> {
        let misfit =
            || format!("input {x:?}, window {:?} and shape {wanted:?} do not fit", self.sliding.kernel);
        let shape = match wanted {
            Some(wanted) => {
                let sizes = wanted.iter().map(|&d| usize::try_from(d).ok());
                sizes.collect::<Option<Vec<_>>>().filter(|shape| shape.len() == x.len()).ok_or_else(misfit)?
            }
            None => {
                let axes = self.sliding.kernel.len();
                if x.len() != axes + 2 {
                    return Err(misfit());
                }
                let at = |list: &[usize], i: usize, default: usize| list.get(i).copied().unwrap_or(default);
                let length = |axis: usize| {
                    let between =
                        x[axis + 2].checked_sub(1)?.checked_mul(at(&self.sliding.strides, axis, 1))?;
                    let pads = at(&self.sliding.pads, axis, 0).checked_add(at(
                        &self.sliding.pads,
                        axes + axis,
                        0,
                    ))?;
                    between.checked_add(self.sliding.kernel[axis])?.checked_sub(pads)
                };
                let spatial: Vec<usize> = (0..axes).map(length).collect::<Option<_>>().ok_or_else(misfit)?;
                [&x[..2], spatial.as_slice()].concat()
            }
        };
        match element_count(&shape).is_some_and(|n| n <= VALUE_BYTES_MAX) {
            true => Ok(shape),
            false => Err(misfit()),
        }
    }
}

impl Operator for MaxUnpool {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let (x, places) = (needed(inputs, 0)?, needed(inputs, 1)?);
        if x.shape != places.shape {
            return Err(format!("{:?} and its places {:?} do not fit", x.shape, places.shape).into());
        }
        let wanted = operand(inputs, 2).map(|_| constant_ints(inputs, 2, "output_shape")).transpose()?;
        Ok(vec![(x.dtype, self.shape(&x.shape, wanted.as_deref())?)])
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let (x, places) = (given(inputs, 0)?, given(inputs, 1)?);
        let wanted = optional(inputs, 2).map(|w| w.to_tensor().to_i64());
        let mut made = Tensor::zeros(x.dtype, &self.shape(x.shape, wanted.as_deref())?);
        let places = elements::<i64>(&places)?;
        with_type!(x.dtype, T => {
            let out = made.slice_mut::<T>();
            for (&v, &place) in x.slice::<T>().iter().zip(places) {
                let count = out.len();
                let y = usize::try_from(place).ok().and_then(|place| out.get_mut(place));
                *y.ok_or_else(|| format!("place {place} is outside of {count} elements"))? = v;
            }
        });
        Ok(vec![made])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sliding(kernel: &[usize]) -> Sliding {
        Sliding { kernel: kernel.to_vec(), ..Sliding::default() }
    }

    #[test]
    fn places_count_over_the_whole_tensor() {
        let x = Tensor::from_slice(&[1, 2, 2, 3], &[1i8, 5, 2, 4, 3, 5, 0, 0, 0, 0, 0, 9]);
        for (by_column, want) in [(false, [1, 1, 6, 11]), (true, [2, 2, 6, 11])] {
            let op = MaxPool { sliding: sliding(&[2, 2]), by_column };
            let made = op.run(&[Some(x.view())], 2).unwrap();
            assert_eq!(made[0].slice::<i8>(), [5, 5, 0, 9]);
            assert_eq!(made[1].slice::<i64>(), want);
        }
    }

    #[test]
    fn a_norm_leaves_padding_out() {
        let x = Tensor::from_slice(&[1, 1, 2], &[3.0f32, 4.0]);
        let padded = Sliding { pads: vec![1, 1], ..sliding(&[2]) };
        let made = LpPool { sliding: Some(padded), order: 2.0 }.run(&[Some(x.view())], 1).unwrap();
        assert_eq!(made[0].slice::<f32>(), [3.0, 5.0, 4.0]);
        let made = LpPool { sliding: None, order: 1.0 }.run(&[Some(x.view())], 1).unwrap();
        assert_eq!((made[0].slice::<f32>(), made[0].shape()), (&[7.0f32][..], &[1, 1, 1][..]));
    }

    #[test]
    fn unpooling_puts_elements_back() {
        let op = MaxUnpool { sliding: Sliding { strides: vec![2], ..sliding(&[2]) } };
        let x = Tensor::from_slice(&[1, 1, 2], &[7.0f32, 8.0]);
        let run = |places: [i64; 2]| {
            let places = Tensor::from_slice(&[1, 1, 2], &places);
            op.run(&[Some(x.view()), Some(places.view())], 1)
        };
        assert_eq!(run([1, 2]).unwrap()[0].slice::<f32>(), [0.0, 7.0, 8.0, 0.0]);
        assert!(run([1, 4]).is_err() && run([-1, 0]).is_err());
        assert!(op.shape(&[1, 1, 0], None).is_err() && op.shape(&[1, 1, 2], Some(&[1, 1, -2])).is_err());
    }
}
