//! What a model answers for each label: counts of (label, chosen class), and what their pattern says.

use std::collections::BTreeMap;

use serde::Serialize;

/// Most pairs that are counted: 200 classes that are all taken for each other.
const PAIRS_MAX: usize = 40_000;

/// Counts of what was chosen for each label.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Confusion {
    /// `[label, chosen class, samples]`, sorted.
    #[serde(serialize_with = "triples")]
    pairs: BTreeMap<(i64, i64), u64>,
}

fn triples<S: serde::Serializer>(pairs: &BTreeMap<(i64, i64), u64>, to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(pairs.iter().map(|((label, class), count)| (label, class, count)))
}

/// How labels and answers hang together.
#[derive(Clone, Debug, PartialEq)]
pub enum Pattern {
    /// The chosen class is the label plus this number, on this share of the samples.
    Offset(i64, f64),
    /// Each class is taken for another one: the share that would be right under the best renaming.
    Renamed(f64),
    /// The model chooses one class on this share of the samples.
    OneClass(i64, f64),
    /// Neither.
    Unrelated,
}

impl Confusion {
    /// Counts a sample.
    pub fn add(&mut self, label: i64, class: i64) {
        if self.pairs.len() < PAIRS_MAX || self.pairs.contains_key(&(label, class)) {
            *self.pairs.entry((label, class)).or_default() += 1;
        }
    }

    /// Number of samples.
    pub fn samples(&self) -> u64 {
        self.pairs.values().sum()
    }

    /// The pairs with their counts, sorted by label and class.
    pub fn pairs(&self) -> impl Iterator<Item = (i64, i64, u64)> + '_ {
        self.pairs.iter().map(|(&(label, class), &count)| (label, class, count))
    }

    /// The share that would be right if answers had nothing to do with labels: `Σ p(label = c) · p(answer = c)`.
    pub fn chance(&self) -> f64 {
        let (labels, classes) = (self.sums(|l, _| l), self.sums(|_, c| c));
        let n = self.samples().max(1) as f64;
        labels.iter().map(|(c, count)| *count as f64 * *classes.get(c).unwrap_or(&0) as f64).sum::<f64>()
            / (n * n)
    }

    /// What the pattern is where labels and answers do not agree.
    pub fn pattern(&self) -> Pattern {
        let n = self.samples().max(1) as f64;
        let classes = self.sums(|_, c| c);
        let most =
            |sums: &BTreeMap<i64, u64>| sums.iter().max_by_key(|(_, count)| **count).map(|(c, n)| (*c, *n));
        let (class, count) = most(&classes).unwrap_or_default();
        let (offset, agreeing) = most(&self.sums(|l, c| c - l)).unwrap_or_default();
        // A class for each label and no class twice, the largest counts first.
        let mut pairs: Vec<(u64, i64, i64)> = self.pairs().map(|(l, c, count)| (count, l, c)).collect();
        pairs.sort_unstable_by(|a, b| b.cmp(a));
        let (mut labels, mut taken, mut renamed) = (Vec::new(), Vec::new(), 0);
        for (count, label, class) in pairs {
            if !labels.contains(&label) && !taken.contains(&class) {
                labels.push(label);
                taken.push(class);
                renamed += count;
            }
        }
        let (one, offset_share, renamed) = (count as f64 / n, agreeing as f64 / n, renamed as f64 / n);
        let labels_share = most(&self.sums(|l, _| l)).map_or(0.0, |(_, count)| count as f64 / n);
        match () {
            () if one > 0.6 && one > 1.5 * labels_share => Pattern::OneClass(class, one),
            () if offset != 0 && offset_share > 0.5 => Pattern::Offset(offset, offset_share),
            () if renamed > 0.5 => Pattern::Renamed(renamed),
            () => Pattern::Unrelated,
        }
    }

    fn sums(&self, key: impl Fn(i64, i64) -> i64) -> BTreeMap<i64, u64> {
        let mut sums = BTreeMap::new();
        self.pairs().for_each(|(label, class, count)| *sums.entry(key(label, class)).or_default() += count);
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_tells_how_labels_and_answers_hang_together() {
        let of = |answer: fn(i64, i64) -> i64| {
            let mut confusion = Confusion::default();
            for label in 0..10 {
                (0..20).for_each(|i| confusion.add(label, answer(label, i)));
            }
            confusion
        };
        for (answer, want) in [
            ((|l, _| l + 1) as fn(i64, i64) -> i64, Pattern::Offset(1, 1.0)),
            (|l, _| 9 - l, Pattern::Renamed(1.0)),
            (|_, _| 3, Pattern::OneClass(3, 1.0)),
            (|l, i| (l * 7 + i) % 10, Pattern::Unrelated),
        ] {
            assert_eq!(of(answer).pattern(), want);
        }
        assert!((of(|l, i| (l * 7 + i) % 10).chance() - 0.1).abs() < 1e-9);
        assert_eq!(Confusion::default().chance(), 0.0);
    }
}
