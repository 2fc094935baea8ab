//! What an epilogue does after the bias where there is an activation, row by row of what the product wrote.

use super::Epilogue;
use super::isa::Isa;

/// What comes after the bias where there is an activation: `run` elements from each of `starts`.
pub(super) fn finish_rows(
    epilogue: &Epilogue<'_>,
    isa: Isa,
    out: &mut [f32],
    starts: impl Iterator<Item = usize>,
    run: usize,
) {
    if epilogue.activation.is_none() {
        return;
    }
    isa.vectorize(
        #[inline(always)]
        || {
            for start in starts {
                epilogue.after_bias(&mut out[start..start + run], start);
            }
        },
    );
}
