//! What is done with rows that an integer product has finished, while they are in the cache: a table and a sum of codes;
//! of reals a bias, an activation, a residual and a clamp. Knows no products.

use super::IntOutput;
use super::eltwise::{add_in_place, apply_table_in_place};
use super::isa::Isa;
use std::ops::Range;

/// Rows of an output, or of the part of it that a thread has.
pub(super) struct Rows<I> {
    /// The first element of each.
    pub(super) starts: I,
    /// Elements from one to the next.
    pub(super) stride: usize,
    /// The channels that each holds.
    pub(super) channels: Range<usize>,
    /// Whether the tiles have added what [`Requant::sum_in_registers`] gives.
    pub(super) summed: bool,
}

impl<I: ExactSizeIterator<Item = usize>> Rows<I> {
    /// Completes what tiles have written: everything of an epilogue that is not done in registers.
    pub(super) fn complete(self, isa: Isa, out: &mut IntOutput) {
        match out {
            IntOutput::U8(out, requant) => {
                let summed = self.summed && requant.sum_in_registers().is_some();
                let (table, sum) = (requant.table, requant.sum.filter(|_| !summed));
                if table.is_none() && sum.is_none() {
                    return;
                }
                self.each(|start, len| {
                    let codes = &mut out[start..][..len];
                    if let Some(table) = table {
                        apply_table_in_place(isa, codes, table);
                    }
                    if let Some(sum) = sum {
                        add_in_place(isa, codes, &sum.codes[start..][..len], &sum);
                    }
                });
            }
            IntOutput::F32(out, dequant) => {
                let Some(epilogue) = dequant.then else { return };
                // Every list along the channels begins anew in each row.
                let bias = epilogue.bias.map(|bias| &bias[self.channels.clone()]);
                self.each(|start, len| {
                    let y = &mut out[start..][..len];
                    isa.vectorize(
                        #[inline(always)]
                        || {
                            if let Some(bias) = bias {
                                for row in y.chunks_exact_mut(bias.len()) {
                                    row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
                                }
                            }
                            epilogue.after_bias(y, start);
                        },
                    );
                });
            }
            IntOutput::I32(..) => {}
        }
    }

    /// Calls `f` with start and length of each run of elements: all rows at once where they lie side by side.
    pub(super) fn each(self, mut f: impl FnMut(usize, usize)) {
        let Rows { mut starts, stride, channels, .. } = self;
        if channels.len() == stride {
            let count = starts.len();
            if let Some(first) = starts.next() {
                f(first, count * stride);
            }
        } else {
            starts.for_each(|start| f(start, channels.len()));
        }
    }
}
