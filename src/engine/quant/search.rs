//! Which layers stay in float so that a gate is kept: by the noise that each makes alone over what it costs to keep it in
//! float. Knows no models: whoever asks measures.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

/// A layer that may be kept in float.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sensitivity {
    /// Its place in the float graph.
    #[serde(skip)]
    pub place: usize,
    /// Its name.
    pub node: String,
    /// Noise power over signal power of the model's first output where this layer alone computes on codes.
    pub noise: f64,
    /// The same as signal to noise in dB.
    pub sqnr_db: f64,
    /// What the codes of its weights alone would leave, in dB.
    pub weights_db: f64,
    /// What the codes of its operands alone would leave, in dB.
    pub activations_db: f64,
    /// Multiply-accumulates of one sample.
    pub macs: u64,
    /// Bytes of its weights.
    pub bytes: u64,
}

/// A model that was tried on the whole evaluation data.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trial {
    /// Names of the layers that stayed in float, besides those of the recipe.
    pub keeps_float: Vec<String>,
    /// The metric of the gate, by INT8.
    pub metric: f64,
    /// Share of samples on which float and INT8 agree.
    pub agreement: f64,
    /// Signal to noise of the first output, in dB.
    pub sqnr_db: f64,
    /// Share of the multiply-accumulates that are computed on integers.
    pub integer_mac_share: f64,
    /// Bytes of the weights.
    pub bytes: u64,
    /// Whether the gate is kept.
    pub passes: bool,
    /// Why it counts as not kept although every figure is within its limit.
    pub refused: Option<String>,
    /// How far the gate is kept: the least distance of a figure from its limit, negative where one is not kept.
    #[serde(skip)]
    pub margin: f64,
}

/// What a search asks of whoever can run the model.
pub trait Judge {
    /// What went wrong while a model ran.
    type Error;

    /// A model with some layers in float, on the whole evaluation data.
    ///
    /// # Errors
    /// Where the model cannot be run.
    fn judge(&mut self, kept: &BTreeSet<usize>) -> Result<Trial, Self::Error>;
}

/// What was found.
#[derive(Clone, Debug)]
pub struct Found {
    /// The layers that stay in float.
    pub kept: BTreeSet<usize>,
    /// All that was tried, in order.
    pub trials: Vec<Trial>,
}

/// Looks for few and cheap layers that must stay in float. `first` is the trial with none.
///
/// Layers are ranked by noise over cost. The shortest beginning of the ranking that keeps the gate is found by halving;
/// then layers are put back on codes one by one, the most expensive first, while the gate holds. Accuracy is not monotone in
/// the layers, so every step is measured; the best trial is what is returned, also where none keeps the gate.
///
/// # Errors
/// What a trial gives.
pub fn search<J: Judge>(
    layers: &[Sensitivity],
    first: Trial,
    trials_max: u32,
    judge: &mut J,
) -> Result<Found, J::Error> {
    let mut tried = Tried { judge, seen: BTreeMap::new(), trials: vec![first.clone()], left: trials_max };
    tried.seen.insert(BTreeSet::new(), first.clone());
    if first.passes {
        return Ok(Found { kept: BTreeSet::new(), trials: tried.trials });
    }
    let ranking = ranking(layers);
    let beginning = |n: usize| -> BTreeSet<usize> { ranking[..n].iter().map(|&l| layers[l].place).collect() };
    // Doubling finds an end that passes with few layers, halving the shortest.
    let (mut bad, mut good) = (0, None);
    let mut next = 1;
    while bad < ranking.len() && good.is_none() {
        let n = next.min(ranking.len());
        match tried.passes(&beginning(n))? {
            None => break,
            Some(true) => good = Some(n),
            Some(false) => (bad, next) = (n, 2 * n),
        }
    }
    if let Some(mut end) = good {
        while end - bad > 1 {
            let middle = (end + bad) / 2;
            match tried.passes(&beginning(middle))? {
                None => break,
                Some(true) => end = middle,
                Some(false) => bad = middle,
            }
        }
        let mut kept = beginning(end);
        // Dear ones back first; the last of the ranking is needed, or halving would have ended before it.
        let mut back: Vec<&Sensitivity> = ranking[..end - 1].iter().map(|&l| &layers[l]).collect();
        back.sort_by(|a, b| b.macs.cmp(&a.macs).then(a.place.cmp(&b.place)));
        for layer in back {
            let mut without = kept.clone();
            without.remove(&layer.place);
            match tried.passes(&without)? {
                None => break,
                Some(true) => kept = without,
                Some(false) => {}
            }
        }
    }
    let better = |a: &(&BTreeSet<usize>, &Trial), b: &(&BTreeSet<usize>, &Trial)| {
        // Of those that pass the one with the most integers, of those that do not the one that comes nearest.
        let by = |t: &Trial| if t.passes { t.integer_mac_share } else { t.margin };
        (a.1.passes.cmp(&b.1.passes))
            .then(by(a.1).total_cmp(&by(b.1)))
            .then(b.0.len().cmp(&a.0.len()))
            .then(b.0.cmp(a.0))
    };
    let kept = tried.seen.iter().max_by(better).map(|(kept, _)| kept.clone()).unwrap_or_default();
    Ok(Found { kept, trials: tried.trials })
}

/// Positions of the layers, those first that lose much noise for little.
fn ranking(layers: &[Sensitivity]) -> Vec<usize> {
    let macs: u64 = layers.iter().map(|l| l.macs).sum();
    // A layer without products costs something as well: what is read and written.
    let cost = |l: &Sensitivity| l.macs as f64 / macs.max(1) as f64 + 0.01;
    let gain = |l: &Sensitivity| l.noise / cost(l);
    let mut order: Vec<usize> = (0..layers.len()).filter(|&l| layers[l].noise > 0.0).collect();
    order.sort_by(|&a, &b| gain(&layers[b]).total_cmp(&gain(&layers[a])).then(a.cmp(&b)));
    order
}

struct Tried<'a, J> {
    judge: &'a mut J,
    seen: BTreeMap<BTreeSet<usize>, Trial>,
    trials: Vec<Trial>,
    left: u32,
}

impl<J: Judge> Tried<'_, J> {
    /// Whether the gate is kept; `None` where there is no trial left.
    fn passes(&mut self, kept: &BTreeSet<usize>) -> Result<Option<bool>, J::Error> {
        if let Some(trial) = self.seen.get(kept) {
            return Ok(Some(trial.passes));
        }
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        let trial = self.judge.judge(kept)?;
        self.trials.push(trial.clone());
        let passes = trial.passes;
        self.seen.insert(kept.clone(), trial);
        Ok(Some(passes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Layers whose noises add up, and a limit.
    struct Made {
        layers: Vec<Sensitivity>,
        limit: f64,
        asked: u32,
    }

    impl Made {
        fn trial(&self, kept: &BTreeSet<usize>) -> Trial {
            let left = self.layers.iter().filter(|l| !kept.contains(&l.place));
            let noise: f64 = left.clone().map(|l| l.noise).sum();
            let all: u64 = self.layers.iter().map(|l| l.macs).sum();
            Trial {
                keeps_float: kept.iter().map(usize::to_string).collect(),
                metric: 1.0 - noise,
                agreement: 1.0 - noise,
                sqnr_db: 0.0,
                integer_mac_share: left.map(|l| l.macs).sum::<u64>() as f64 / all as f64,
                bytes: 0,
                passes: noise <= self.limit,
                refused: None,
                margin: self.limit - noise,
            }
        }
    }

    impl Judge for Made {
        type Error = ();

        fn judge(&mut self, kept: &BTreeSet<usize>) -> Result<Trial, ()> {
            self.asked += 1;
            Ok(self.trial(kept))
        }
    }

    fn found(layers: &[(f64, u64)], limit: f64, trials: u32) -> (Vec<usize>, usize) {
        let layer = |(place, &(noise, macs)): (usize, &(f64, u64))| Sensitivity {
            place,
            node: place.to_string(),
            noise,
            sqnr_db: 0.0,
            weights_db: 0.0,
            activations_db: 0.0,
            macs,
            bytes: 0,
        };
        let layers: Vec<Sensitivity> = layers.iter().enumerate().map(layer).collect();
        let mut made = Made { layers: layers.clone(), limit, asked: 0 };
        let first = made.trial(&BTreeSet::new());
        let found = search(&layers, first, trials, &mut made).unwrap();
        assert!(made.asked <= trials, "the budget holds");
        (found.kept.into_iter().collect(), found.trials.len())
    }

    #[test]
    fn few_and_cheap_layers_are_kept() {
        let layers = [(0.1, 10), (5.0, 10), (0.1, 10), (3.0, 10), (0.2, 500)];
        assert_eq!(found(&layers, 9.0, 20), (vec![], 1), "nothing is tried where the gate holds");
        assert_eq!(found(&layers, 3.6, 20).0, [1]);
        assert_eq!(found(&layers, 0.5, 20).0, [1, 3]);
        assert_eq!(found(&layers, 0.25, 20).0, [0, 1, 2, 3], "the dear one last");
    }

    #[test]
    fn a_layer_that_is_not_needed_goes_back() {
        // By noise over cost the first three are taken; then the dear one of them turns out not to be needed.
        let layers = [(3.0, 10), (9.0, 100), (2.0, 10), (0.0, 10)];
        let (kept, _) = found(&layers, 9.0, 20);
        assert_eq!(kept, [0, 2]);
    }

    #[test]
    fn a_gate_that_cannot_be_kept_ends_within_the_budget() {
        for trials in [0, 1, 3, 20] {
            let (kept, tried) = found(&[(1.0, 1), (1.0, 1), (0.5, 1)], -1.0, trials);
            assert!(tried as u32 <= trials + 1);
            assert_eq!(kept.len(), if trials == 0 { 0 } else { kept.len().max(1) });
        }
    }
}
