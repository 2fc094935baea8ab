//! Compares served answers with those of the float twin: a part of the requests runs again in float, when there is time.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::engine::quant::evaluate::{Pair, pairs};
use crate::engine::tensor::Tensor;
use crate::service::infer::Inputs;
use crate::service::infer::batcher::Batcher;
use crate::service::infer::lane::Lane;
use crate::service::metrics::Compared;
use crate::service::metrics::endpoints::ShadowMetrics;

/// So many of the last samples make up the recent figures.
pub const RECENT: usize = 1000;
/// Comparisons that may wait for a run: further ones are skipped, so that they hold no memory.
const WAITING_MAX: usize = 64;

/// Chooses an exact fraction of what passes by, evenly spread.
#[derive(Debug, Default)]
pub struct Picker(AtomicU64);

impl Picker {
    /// The next point of a sequence that fills 0 to 1 evenly (multiples of the golden ratio, modulo 1).
    pub fn next(&self) -> f64 {
        const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
        let at = self.0.fetch_add(GOLDEN, Ordering::Relaxed);
        (at >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// What the comparison has found.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Figures {
    /// Samples compared since the version was loaded.
    pub compared: u64,
    /// Of them, those that agree.
    pub agreed: u64,
    /// Of the recent ones, the number.
    pub recent: usize,
    /// Of the recent ones, the share that agrees.
    pub agreement: f64,
    /// Of the recent ones, the mean cosine.
    pub cosine: f64,
    /// Of the recent ones, the largest difference of two values.
    pub max_abs_error: f64,
}

/// The comparison of one version with its float twin.
pub struct Comparer {
    lane: Arc<Lane>,
    // Whether the first dimension is the sample.
    by_sample: bool,
    picker: Picker,
    waiting: AtomicUsize,
    seen: Mutex<Seen>,
    metrics: ShadowMetrics,
}

#[derive(Default)]
struct Seen {
    compared: u64,
    agreed: u64,
    recent: VecDeque<Pair>,
}

impl Comparer {
    /// Runs the float twin in `lane`.
    #[must_use]
    pub fn new(lane: Arc<Lane>, by_sample: bool, metrics: ShadowMetrics) -> Arc<Comparer> {
        let (picker, waiting, seen) = (Picker::default(), AtomicUsize::new(0), Mutex::default());
        Arc::new(Comparer { lane, by_sample, picker, waiting, seen, metrics })
    }

    /// Whether the next request is one of the fraction that is compared.
    pub fn picks(&self, fraction: f64) -> bool {
        fraction > 0.0 && self.picker.next() < fraction
    }

    /// Compares an answer in its own time; the client does not wait for it.
    pub fn compare(
        self: &Arc<Comparer>,
        batcher: &Arc<Batcher>,
        inputs: Inputs,
        samples: usize,
        int8: Tensor,
    ) {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= WAITING_MAX {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            self.metrics.compared(Compared::Skipped, samples as u64);
            return;
        }
        let (comparer, batcher) = (Arc::clone(self), Arc::clone(batcher));
        tokio::spawn(async move {
            let answer = batcher.infer(&comparer.lane, inputs, samples, None, 0).await;
            comparer.waiting.fetch_sub(1, Ordering::Relaxed);
            let float = answer.ok().and_then(|answer| answer.outputs.into_iter().next());
            let found = float.and_then(|float| pairs(&float, &int8, !comparer.by_sample));
            match found {
                Some(found) => comparer.note(&found),
                None => comparer.metrics.compared(Compared::Error, samples as u64),
            }
        });
    }

    fn note(&self, found: &[Pair]) {
        let agreed = found.iter().filter(|pair| pair.agrees).count() as u64;
        self.metrics.compared(Compared::Match, agreed);
        self.metrics.compared(Compared::Mismatch, found.len() as u64 - agreed);
        for pair in found {
            // Rounding may put the cosine a little above 1.
            self.metrics.differs((1.0 - pair.cosine).max(0.0), pair.max_abs_error);
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.compared += found.len() as u64;
        seen.agreed += agreed;
        seen.recent.extend(found);
        let beyond = seen.recent.len().saturating_sub(RECENT);
        seen.recent.drain(..beyond);
    }

    /// What was found so far.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let recent = seen.recent.len();
        let mean = |of: fn(&Pair) -> f64| seen.recent.iter().map(of).sum::<f64>() / recent.max(1) as f64;
        Figures {
            compared: seen.compared,
            agreed: seen.agreed,
            recent,
            agreement: mean(|pair| f64::from(u8::from(pair.agrees))),
            cosine: mean(|pair| pair.cosine),
            max_abs_error: seen.recent.iter().map(|pair| pair.max_abs_error).fold(0.0, f64::max),
        }
    }

    /// Brings what was found into the metrics.
    pub fn show(&self) {
        let figures = self.figures();
        if figures.recent > 0 {
            self.metrics.set_agreement(figures.agreement);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fraction_is_kept_closely() {
        for fraction in [0.0, 0.01, 0.1, 0.5, 0.999, 1.0] {
            let picker = Picker::default();
            let picked = (0..10_000).filter(|_| picker.next() < fraction).count() as f64;
            assert!((picked - fraction * 1e4).abs() <= 3.0, "{fraction}: {picked}");
        }
    }
}
