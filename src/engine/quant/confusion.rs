//! What a model answers for each label: counts of (label, chosen class), and what their pattern says.

use std::collections::{BTreeMap, HashSet};

use serde::Serialize;

/// Most pairs that are counted: 200 classes that are all taken for each other.
const PAIRS_MAX: usize = 40_000;
/// Standard deviations above chance from which on answers have to do with the labels.
const DEVIATIONS: f64 = 4.0;
/// Samples of a class that are taken for another one, without which no other name is believed.
const CYCLE_MIN: u64 = 5;

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
    /// The chosen class is the label plus this number, on this share of the samples; behind the last class comes the
    /// first.
    Offset(i64, f64),
    /// Each class is taken for another one: the share that is right under the best renaming.
    Renamed(f64),
    /// The model chooses one class on this share of the samples.
    OneClass(i64, f64),
    /// None of these, and right more often than chance would be.
    Weak,
    /// Neither.
    Unrelated,
}

/// Classes whose names went round: the samples of each are taken for the next one, those of the last for the first.
#[derive(Clone, Debug, PartialEq)]
pub struct Cycle {
    /// Each label, how many samples have it, and on how many of them the next one is chosen.
    pub classes: Vec<(i64, u64, u64)>,
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

    /// The number of samples that have another label than the commonest one.
    pub fn beside_commonest(&self) -> u64 {
        self.samples() - self.sums(|l, _| l).values().max().copied().unwrap_or(0)
    }

    /// What the pattern is where labels and answers do not agree.
    pub fn pattern(&self) -> Pattern {
        let n = self.samples().max(1) as f64;
        let most =
            |sums: &BTreeMap<i64, u64>| sums.iter().max_by_key(|(_, count)| **count).map(|(c, n)| (*c, *n));
        let (class, count) = most(&self.sums(|_, c| c)).unwrap_or_default();
        let one = count as f64 / n;
        let labels_share = most(&self.sums(|l, _| l)).map_or(0.0, |(_, count)| count as f64 / n);
        let right = self.right();
        let names = self.best_names();
        let renamed = self.renamed(&names);
        let (share, chance) = (renamed.right(), renamed.chance());
        // Names under which labels and answers hang together, not those under which chance is kindest.
        let explains = names.iter().any(|(l, c)| l != c)
            && share > 0.5
            && share > right + 0.1
            && (chance > 0.9 || share - chance > 0.5 * (1.0 - chance));
        let deviation = (self.chance() * (1.0 - self.chance()) / n).sqrt();
        match () {
            () if explains => match self.offset(&names) {
                Some(offset) => Pattern::Offset(offset, share),
                None => Pattern::Renamed(share),
            },
            () if one > 0.6 && (one > 1.5 * labels_share || one > 0.95) => Pattern::OneClass(class, one),
            () if right > self.chance() + DEVIATIONS * deviation => Pattern::Weak,
            () => Pattern::Unrelated,
        }
    }

    /// Pairs and longer cycles of classes that a renaming explains: most samples of each are taken for the next one, and
    /// few are right. What is left once they are renamed says whether that is believed.
    pub fn cycles(&self) -> Vec<Cycle> {
        let totals = self.sums(|l, _| l);
        let mut taken_for: BTreeMap<i64, (i64, u64)> = BTreeMap::new();
        for (label, class, count) in self.pairs() {
            let right = self.pairs.get(&(label, label)).copied().unwrap_or(0);
            if label != class && count >= CYCLE_MIN && 2 * count > totals[&label] && count > 4 * right {
                taken_for.insert(label, (class, count));
            }
        }
        let mut cycles = Vec::new();
        let mut seen: Vec<i64> = Vec::new();
        for &start in taken_for.keys() {
            let (mut at, mut path) = (start, Vec::new());
            while let Some(&(next, count)) = taken_for.get(&at).filter(|_| !seen.contains(&at)) {
                seen.push(at);
                path.push((at, totals[&at], count));
                at = next;
            }
            // A path may run into a cycle that it is no part of.
            if let Some(first) = path.iter().position(|p| p.0 == at) {
                cycles.push(Cycle { classes: path.split_off(first) });
            }
        }
        cycles
    }

    /// The share that is right.
    pub fn right(&self) -> f64 {
        let right: u64 = self.pairs().filter(|(label, class, _)| label == class).map(|p| p.2).sum();
        right as f64 / self.samples().max(1) as f64
    }

    /// The same answers where labels have other names; those without one keep theirs.
    pub fn renamed(&self, names: &BTreeMap<i64, i64>) -> Confusion {
        let mut renamed = Confusion::default();
        for (label, class, count) in self.pairs() {
            *renamed.pairs.entry((*names.get(&label).unwrap_or(&label), class)).or_default() += count;
        }
        renamed
    }

    /// A class for each label and no class twice, the largest counts first.
    fn best_names(&self) -> BTreeMap<i64, i64> {
        let mut pairs: Vec<(u64, i64, i64)> = self.pairs().map(|(l, c, count)| (count, l, c)).collect();
        pairs.sort_unstable_by(|a, b| b.cmp(a));
        let mut names = BTreeMap::new();
        let mut taken = HashSet::new();
        for (_, label, class) in pairs {
            if !names.contains_key(&label) && !taken.contains(&class) {
                names.insert(label, class);
                taken.insert(class);
            }
        }
        names
    }

    /// By how much each label is off, where all are off by as much; behind the last class comes the first.
    fn offset(&self, names: &BTreeMap<i64, i64>) -> Option<i64> {
        let classes = names.iter().flat_map(|(l, c)| [*l, *c]).max()? + 1;
        let offset = names.iter().map(|(l, c)| c - l).min_by_key(|o| o.abs())?;
        let all = names.iter().all(|(l, c)| (c - l - offset).rem_euclid(classes) == 0);
        // Of two classes one can as well say that they are exchanged.
        (all && offset != 0 && classes > 2).then_some(offset)
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
            (|l, _| (l + 9) % 10, Pattern::Offset(-1, 1.0)),
            (|l, _| 9 - l, Pattern::Renamed(1.0)),
            (|_, _| 3, Pattern::OneClass(3, 1.0)),
            (|l, i| (l * 7 + i) % 10, Pattern::Unrelated),
            (|l, i| if i < 5 { l } else { (l * 7 + i) % 10 }, Pattern::Weak),
        ] {
            assert_eq!(of(answer).pattern(), want);
        }
        assert!((of(|l, i| (l * 7 + i) % 10).chance() - 0.1).abs() < 1e-9);
        assert_eq!(Confusion::default().chance(), 0.0);
    }

    /// Two classes that were exchanged: it was said that "on 66 % it chooses the label -1", of shuffled labels that other
    /// names would help, which were the names that they had.
    #[test]
    fn two_classes_are_exchanged_or_shuffled() {
        let of = |pairs: &[(i64, i64, u64)]| {
            let mut confusion = Confusion::default();
            pairs.iter().for_each(|&(l, c, count)| (0..count).for_each(|_| confusion.add(l, c)));
            confusion
        };
        for (pairs, want) in [
            (&[(0, 1, 480), (0, 0, 10), (1, 0, 1000), (1, 1, 21)][..], Pattern::Renamed(1480.0 / 1511.0)),
            (&[(0, 0, 650), (0, 1, 345), (1, 0, 345), (1, 1, 171)], Pattern::Unrelated),
            (&[(0, 0, 990), (1, 0, 10)], Pattern::OneClass(0, 1.0)),
            (&[(3, 7, 94), (3, 3, 1)], Pattern::Offset(4, 94.0 / 95.0)),
        ] {
            assert_eq!(of(pairs).pattern(), want, "{pairs:?}");
        }
    }

    #[test]
    fn names_that_went_round_are_found_among_others_that_did_not() {
        let of = |answer: fn(i64, i64) -> i64| {
            let mut confusion = Confusion::default();
            for label in 0..10 {
                (0..20).for_each(|i| confusion.add(label, answer(label, i)));
            }
            confusion.cycles().into_iter().map(|c| c.classes.iter().map(|c| c.0).collect()).collect()
        };
        let found: [Vec<Vec<i64>>; 5] = [
            of(|l, _| l),
            of(|l, i| [3, 7].iter().position(|&x| x == l).filter(|_| i > 0).map_or(l, |p| [7, 3][p])),
            of(|l, _| [1, 2, 0, 4, 3, 5, 6, 7, 8, 9][l as usize]),
            // One class is taken for another, which is right: weak, and no matter of names.
            of(|l, _| if l == 4 { 6 } else { l }),
            // As often right as wrong.
            of(|l, i| if l < 2 && i % 2 == 0 { 1 - l } else { l }),
        ];
        assert_eq!(found, [vec![], vec![vec![3, 7]], vec![vec![0, 1, 2], vec![3, 4]], vec![], vec![]]);
    }
}
