//! Products whose results are reals for a moment only: a function that has no place in registers is computed of them, and
//! codes of that are what is kept. Knows no products.
//!
//! A band of rows goes to scratch as reals and from there to codes while it is in the cache, so that no real leaves it.

use super::isa::Isa;
use super::lines::with_scratch;
use super::parallel::Split;
use super::requant::quantize_here;
use super::rows::Rows;
use super::{Activation, Dequant, Epilogue, IntOutput};
use std::ops::Range;

/// Elements of a band: 128 KiB of reals, which the second-level cache holds beside the weights.
const BAND: usize = 1 << 15;

/// How accumulators become codes by way of reals: `QuantizeLinear` of what [`Dequant`] gives.
#[derive(Clone, Copy, Debug)]
pub struct Coded<'a> {
    /// The reals.
    pub reals: Dequant<'a>,
    /// Scale of the codes.
    pub scale: f32,
    /// Zero point of the codes.
    pub zero_point: u8,
}

/// Where the results of an integer product go.
pub enum Output<'a, 'b> {
    /// What its tiles write.
    Direct(IntOutput<'a, 'b>),
    /// Codes of the reals that its tiles write.
    Coded(&'a mut [u8], &'b Coded<'b>),
}

impl<'a, 'b> From<IntOutput<'a, 'b>> for Output<'a, 'b> {
    fn from(out: IntOutput<'a, 'b>) -> Output<'a, 'b> {
        Output::Direct(out)
    }
}

impl Split for Output<'_, '_> {
    fn split(self, mid: usize) -> (Self, Self) {
        match self {
            Output::Direct(out) => {
                let (left, right) = out.split(mid);
                (Output::Direct(left), Output::Direct(right))
            }
            Output::Coded(out, coded) => {
                let (left, right) = out.split_at_mut(mid);
                (Output::Coded(left, coded), Output::Coded(right, coded))
            }
        }
    }
}

/// The channels of an output that a product writes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Columns {
    /// Elements from one row to the next.
    pub(super) stride: usize,
    /// The first of the channels.
    pub(super) offset: usize,
    /// How many.
    pub(super) count: usize,
}

impl Columns {
    /// All of an output whose rows have no other channels.
    pub(super) const DENSE: Columns = Columns { stride: 1, offset: 0, count: 1 };
}

impl Output<'_, '_> {
    /// Elements of the buffer.
    pub(super) fn len(&self) -> usize {
        match self {
            Output::Direct(out) => out.len(),
            Output::Coded(out, _) => out.len(),
        }
    }

    /// Asserts one bias and one factor for each of `channels`.
    pub(super) fn assert_channels(&self, channels: usize) {
        match self {
            Output::Direct(out) => out.assert_channels(channels),
            Output::Coded(_, coded) => {
                IntOutput::F32(&mut [], &coded.reals).assert_channels(channels);
            }
        }
    }

    /// Calls `f` with units `units` of the whole, which this is, and with where its tiles write them: with all of them, or
    /// with one band after the other, of whole multiples of `quantum` units. Unit `i` begins at element `start(i)` of the
    /// whole.
    pub(super) fn in_bands(
        self,
        isa: Isa,
        columns: Columns,
        units: Range<usize>,
        quantum: usize,
        start: impl Fn(usize) -> usize,
        f: impl Fn(Range<usize>, &mut IntOutput),
    ) {
        match self {
            Output::Direct(mut out) => out.with_own_part(start(units.start), |out| f(units, out)),
            Output::Coded(out, coded) => {
                let (origin, mut first) = (start(units.start), units.start);
                let activation = coded.lone_activation();
                let then = coded.reals.then.filter(|_| activation.is_none());
                let written = Dequant { then, ..coded.reals };
                while first < units.end {
                    let longer = |last: usize| (last + quantum).min(units.end);
                    let mut last = longer(first);
                    while last < units.end && start(longer(last)) - start(first) <= BAND {
                        last = longer(last);
                    }
                    let band = start(first)..start(last);
                    with_scratch::<f32, _>(band.len(), |reals| {
                        IntOutput::F32(reals, &written)
                            .with_own_part(band.start, |reals| f(first..last, reals));
                        let codes = &mut out[band.start - origin..][..band.len()];
                        coded.quantize(isa, columns, activation, reals, codes);
                    });
                    first = last;
                }
            }
        }
    }

    /// Calls `f` with where the tiles write all of it, in one band.
    pub(super) fn in_one_band(self, isa: Isa, columns: Columns, f: impl Fn(&mut IntOutput)) {
        let len = self.len();
        self.in_bands(isa, columns, 0..1, 1, |end| end * len, |_, out| f(out));
    }

    /// Calls `f` with all of an output whose rows have no other channels.
    pub fn at_once(self, isa: Isa, f: impl Fn(&mut IntOutput)) {
        self.in_one_band(isa, Columns::DENSE, f);
    }
}

impl Coded<'_> {
    /// The activation, where nothing else is done with the reals: it is computed when they become codes.
    fn lone_activation(&self) -> Option<Activation> {
        let then = self.reals.then?;
        let alone = Epilogue { activation: then.activation, ..Epilogue::NONE };
        (then == alone).then_some(then.activation).flatten()
    }

    /// Codes of reals, of the same rows: what the tiles made of them if `activation` is to be computed yet.
    fn quantize(
        &self,
        isa: Isa,
        columns: Columns,
        activation: Option<Activation>,
        reals: &[f32],
        codes: &mut [u8],
    ) {
        let Columns { stride, offset, count } = columns;
        let starts = (0..reals.len() / stride).map(|row| row * stride + offset);
        Rows { starts, stride, channels: 0..count, summed: false }.each(|start, len| {
            let (reals, codes) = (&reals[start..][..len], &mut codes[start..][..len]);
            quantize_here(isa, reals, activation, self.scale, self.zero_point, codes);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::depthwise::PackedDepthwise;
    use super::super::gemm_int8::PackedInt8;
    use super::super::requant::quantize;
    use super::super::testing::{Random, epilogues, window, windows};
    use super::super::winograd::PackedWinograd;
    use super::super::winograd_transform::Transform;
    use super::super::{Activation, Window};
    use super::*;

    /// Calls `conv` with an output of reals, whose codes are wanted, and with one of codes.
    fn check(isa: Isa, window: &Window, (stride, channels): (usize, usize), conv: &dyn Fn(Output, usize)) {
        let mut random = Random::new(stride as u64);
        let bias: Vec<i32> = (0..channels).map(|_| random.next() as i32 % 4_000).collect();
        let scale: Vec<f32> = (0..channels).map(|_| (random.next() % 999 + 1) as f32 * 4e-7).collect();
        let (list, residual) = (random.f32s(channels), random.f32s(window.rows() * stride));
        let of = |function| Epilogue { activation: Some(function), ..Epilogue::NONE };
        let functions = [
            Activation::HardSwish,
            Activation::HardSigmoid { alpha: 0.2, beta: 0.5 },
            Activation::Silu,
            Activation::Gelu,
        ];
        let epilogues = epilogues(&list, &residual).into_iter().chain(functions.map(of)).map(Some);
        for then in epilogues.chain([None]) {
            let reals = Dequant { bias: &bias, scale: &scale, then };
            let mut real = vec![f32::NAN; window.rows() * stride];
            conv(IntOutput::F32(&mut real, &reals).into(), 1);
            let coded = Coded { reals, scale: 0.031, zero_point: 97 };
            let mut want = vec![0; real.len()];
            quantize(Isa::Scalar, &real, coded.scale, coded.zero_point, &mut want, 1);
            // Channels that the product does not write are left alone.
            want.iter_mut().zip(&real).filter(|(_, y)| y.is_nan()).for_each(|(q, _)| *q = 5);
            for threads in [1, 3] {
                let mut codes = vec![5; real.len()];
                conv(Output::Coded(&mut codes, &coded), threads);
                assert_eq!(codes, want, "{isa:?} {then:?} {threads} threads, {window:?}");
            }
        }
    }

    #[test]
    fn codes_of_products_are_those_of_their_reals() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        // The last has more bands than one, and threads share its columns or rows.
        let large = [window(1, (60, 33), (1, 1), (1, 1), (1, 1), (0, 0)), Window::of_rows(1)];
        for (i, window) in windows().iter().chain(&large).enumerate() {
            let (inputs, outputs) = (9 + i, 37 + i % 3);
            let mut random = Random::new(i as u64);
            let x = random.u8s(window.pixels() * inputs);
            let codes = random.i8s(outputs * window.taps() * inputs);
            for isa in Isa::available() {
                let packed = PackedInt8::pack_for(isa, &codes, outputs, window, inputs, false);
                for stride in [outputs, outputs + 5] {
                    pool.install(|| {
                        check(isa, window, (stride, outputs), &|out, threads| {
                            let offset = (stride - outputs) / 2;
                            packed.conv(&x, inputs, 0, window, 7, out, stride, offset, threads);
                        });
                    });
                }
            }
        }
    }

    #[test]
    fn codes_of_depthwise_convolutions_are_those_of_their_reals() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let square = [
            window(1, (17, 18), (3, 3), (1, 1), (1, 1), (1, 1)),
            window(2, (15, 1), (5, 5), (2, 2), (1, 1), (2, 2)),
            window(1, (40, 40), (3, 3), (2, 2), (1, 1), (1, 1)),
        ];
        for (i, window) in windows().iter().chain(&square).enumerate() {
            for channels in [5, 32, 45] {
                let mut random = Random::new(i as u64);
                let x = random.u8s(window.pixels() * channels);
                let codes = random.i8s(channels * window.taps());
                for isa in Isa::available() {
                    let packed = PackedDepthwise::pack(isa, &codes, channels, window, false);
                    pool.install(|| {
                        check(isa, window, (channels, channels), &|out, threads| {
                            packed.conv(&x, window, 9, out, threads);
                        });
                    });
                }
            }
        }
    }

    #[test]
    fn codes_of_transformed_convolutions_are_those_of_their_reals() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        for (size, inputs, outputs) in [((9, 7), 5, 3), ((14, 14), 64, 70), ((40, 30), 24, 40)] {
            let window = window(1, size, (3, 3), (1, 1), (1, 1), (1, 1));
            let mut random = Random::new(inputs as u64);
            let x = random.u8s(window.pixels() * inputs);
            let codes: Vec<i8> = random.i8s(outputs * 9 * inputs).iter().map(|w| w / 2).collect();
            for isa in Isa::available() {
                for by in [Transform::F2, Transform::F4] {
                    let packed = PackedWinograd::pack(isa, by, &codes, outputs, inputs);
                    pool.install(|| {
                        check(isa, &window, (outputs + 2, outputs), &|out, threads| {
                            packed.conv(&x, inputs, 0, &window, 3, out, outputs + 2, 1, threads);
                        });
                    });
                }
            }
        }
    }
}
