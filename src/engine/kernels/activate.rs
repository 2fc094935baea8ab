//! What an epilogue does after the bias where there is an activation, row by row of what the product wrote.

use super::Epilogue;
use super::clamp_f32;
use super::isa::Isa;

/// What comes after the bias where there is an activation: `run` elements from each of `starts`.
pub(super) fn finish_rows(
    epilogue: &Epilogue<'_>,
    isa: Isa,
    out: &mut [f32],
    starts: impl Iterator<Item = usize>,
    run: usize,
) {
    let Some(activation) = epilogue.activation else { return };
    isa.vectorize(
        #[inline(always)]
        || {
            for start in starts {
                let y = &mut out[start..start + run];
                activation.apply(y);
                if let Some(residual) = epilogue.residual {
                    y.iter_mut().zip(&residual[start..start + run]).for_each(|(y, r)| *y += r);
                }
                if (epilogue.lo, epilogue.hi) != (f32::NEG_INFINITY, f32::INFINITY) {
                    y.iter_mut().for_each(|y| *y = clamp_f32(*y, epilogue.lo, epilogue.hi));
                }
            }
        },
    );
}
