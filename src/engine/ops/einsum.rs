//! Einsum: a product of tensors summed over some of their axes, as an equation says. Two operands at a time become
//! matrix products over common axes.

use crate::engine::graph::fact::{Fact, Results, Unfit, needed};
use crate::engine::graph::operator::{Call, Operator};
use crate::engine::graph::shapes::VALUE_BYTES_MAX;
use crate::engine::kernels::gemm_f32::matmul_f32;
use crate::engine::kernels::isa::Isa;
use crate::engine::tensor::{DType, Tensor, TensorView, element_count};

use super::number::Number;
use super::real::given;
use super::strides::{gathered, row_major};
use super::typed::with_number;
use super::{Entry, Made};

pub(super) const OPERATORS: &[Entry] = &[("", "Einsum", |call| Ok(Made::new(einsum(call)?)))];

/// An axis by name: a letter, or an axis of the ellipsis, counted from the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Label {
    Ellipsis(usize),
    Letter(char),
}

/// The axes of one operand, or of the result, as the equation has them.
#[derive(Clone, Debug, Default, PartialEq)]
struct Term {
    letters: Vec<char>,
    /// Before which letter the ellipsis stands.
    ellipsis: Option<usize>,
}

impl Term {
    fn parse(text: &str) -> Result<Term, String> {
        let mut term = Term::default();
        let mut rest = text;
        while let Some(next) = rest.chars().next() {
            if let Some(behind) = rest.strip_prefix("...") {
                if term.ellipsis.replace(term.letters.len()).is_some() {
                    return Err(format!("`{text}` has more than one ellipsis"));
                }
                rest = behind;
            } else if next.is_ascii_alphabetic() {
                term.letters.push(next);
                rest = &rest[1..];
            } else {
                return Err(format!("`{next}` in `{text}` is no letter"));
            }
        }
        Ok(term)
    }

    /// A label for every axis, where the ellipsis stands for `dots` axes.
    fn labels(&self, dots: usize) -> Vec<Label> {
        let mut labels: Vec<Label> = self.letters.iter().copied().map(Label::Letter).collect();
        if let Some(at) = self.ellipsis {
            labels.splice(at..at, (0..dots).rev().map(Label::Ellipsis));
        }
        labels
    }
}

/// `x…`, of one type. Labels that an operand repeats mean its diagonal; those that the result lacks are summed over.
#[derive(Debug)]
struct Einsum {
    operands: Vec<Term>,
    result: Term,
}

fn einsum(call: &Call<'_>) -> Result<Einsum, String> {
    let equation = call.attributes.text("equation")?.ok_or("attribute `equation` is missing")?;
    let equation: String = equation.chars().filter(|c| !c.is_whitespace()).collect();
    let (left, right) = match equation.split_once("->") {
        Some((left, right)) => (left, Some(right)),
        None => (equation.as_str(), None),
    };
    let operands = left.split(',').map(Term::parse).collect::<Result<Vec<_>, _>>()?;
    let letters = || operands.iter().flat_map(|term| &term.letters);
    let result = match right {
        Some(right) => Term::parse(right)?,
        // Without an arrow: the ellipsis, then what occurs once, in the order of the alphabet.
        None => {
            let mut once: Vec<char> =
                letters().copied().filter(|a| letters().filter(|b| *b == a).count() == 1).collect();
            once.sort_unstable();
            let ellipsis = operands.iter().any(|term| term.ellipsis.is_some()).then_some(0);
            Term { letters: once, ellipsis }
        }
    };
    for (i, letter) in result.letters.iter().enumerate() {
        if result.letters[..i].contains(letter) || !letters().any(|known| known == letter) {
            return Err(format!("label `{letter}` of the result is there twice, or on no operand"));
        }
    }
    Ok(Einsum { operands, result })
}

/// A tensor, and the label of each of its axes.
struct Labelled {
    tensor: Tensor,
    labels: Vec<Label>,
}

/// Lengths of the axes by their label.
type Lengths = Vec<(Label, usize)>;

fn length(lengths: &Lengths, label: Label) -> usize {
    lengths.iter().find(|(known, _)| *known == label).map_or(1, |(_, length)| *length)
}

/// The labels of each operand, those of the result, and how long each axis is.
struct Axes {
    operands: Vec<Vec<Label>>,
    result: Vec<Label>,
    lengths: Lengths,
}

impl Einsum {
    /// The axes of operands of these shapes.
    fn axes(&self, shapes: &[&[usize]]) -> Result<Axes, String> {
        if shapes.len() != self.operands.len() {
            return Err(format!(
                "the equation has {} operands, {} are given",
                self.operands.len(),
                shapes.len()
            ));
        }
        let mut lengths = Lengths::new();
        let (mut all, mut dots_most) = (Vec::new(), 0);
        for (term, shape) in self.operands.iter().zip(shapes) {
            let dots = shape.len().checked_sub(term.letters.len());
            let dots = dots.filter(|&dots| dots == 0 || term.ellipsis.is_some());
            let dots = dots.ok_or_else(|| {
                format!("an operand of shape {shape:?} does not have the axes {:?}", term.letters)
            })?;
            dots_most = dots_most.max(dots);
            let labels = term.labels(dots);
            for (&label, &new) in labels.iter().zip(*shape) {
                match lengths.iter_mut().find(|(known, _)| *known == label) {
                    None => lengths.push((label, new)),
                    // An axis of length 1 is repeated.
                    Some((_, known)) if *known == 1 => *known = new,
                    Some((_, known)) if *known == new || new == 1 => {}
                    Some((_, known)) => return Err(format!("{label:?} is {known} long, and {new}")),
                }
            }
            all.push(labels);
        }
        Ok(Axes { operands: all, result: self.result.labels(dots_most), lengths })
    }
}

/// An operand with its diagonals taken, without axes that are only repeated.
fn reduced(x: &TensorView<'_>, labels: &[Label], lengths: &Lengths) -> Labelled {
    let strides = row_major(x.shape);
    let mut kept: Vec<(Label, usize, usize)> = Vec::new();
    for ((&label, &own), &step) in labels.iter().zip(x.shape).zip(&strides) {
        if own == 1 && length(lengths, label) != 1 {
            continue;
        }
        match kept.iter_mut().find(|(known, ..)| *known == label) {
            Some((_, _, steps)) => *steps += step,
            None => kept.push((label, own, step)),
        }
    }
    let shape: Vec<usize> = kept.iter().map(|k| k.1).collect();
    let steps: Vec<usize> = kept.iter().map(|k| k.2).collect();
    Labelled { tensor: gathered(x, &shape, &steps), labels: kept.iter().map(|k| k.0).collect() }
}

impl Labelled {
    /// The axes in the order of `labels`, all of which it has.
    fn ordered(self, labels: &[Label]) -> Labelled {
        if self.labels == labels {
            return self;
        }
        let own = row_major(self.tensor.shape());
        let axis = |label: &Label| self.labels.iter().position(|l| l == label).unwrap_or(0);
        let shape: Vec<usize> = labels.iter().map(|l| self.tensor.shape()[axis(l)]).collect();
        let steps: Vec<usize> = labels.iter().map(|l| own[axis(l)]).collect();
        Labelled { tensor: gathered(&self.tensor.view(), &shape, &steps), labels: labels.to_vec() }
    }

    /// Summed over the axes that are not kept.
    fn summed<T: Number>(self, keep: impl Fn(Label) -> bool) -> Labelled {
        let (kept, gone): (Vec<Label>, Vec<Label>) = self.labels.iter().partition(|&&label| keep(label));
        if gone.is_empty() {
            return self;
        }
        let ordered = self.ordered(&[&kept[..], &gone[..]].concat());
        let shape = &ordered.tensor.shape()[..kept.len()];
        let mut tensor = Tensor::zeros(T::DTYPE, shape);
        let each = ordered.tensor.shape()[kept.len()..].iter().product::<usize>();
        if each > 0 {
            let lines = ordered.tensor.slice::<T>().chunks_exact(each);
            for (sum, line) in tensor.slice_mut::<T>().iter_mut().zip(lines) {
                *sum = line.iter().fold(T::ZERO, |sum, &x| sum.plus(x));
            }
        }
        Labelled { tensor, labels: kept }
    }
}

/// The product of two operands over the labels that they share, summed over those that are not kept.
fn contracted<T: Number>(a: Labelled, b: Labelled, keep: impl Fn(Label) -> bool) -> Result<Labelled, String> {
    let shared = |label: &Label| a.labels.contains(label) && b.labels.contains(label);
    let batch: Vec<Label> = a.labels.iter().copied().filter(|l| shared(l) && keep(*l)).collect();
    let inner: Vec<Label> = a.labels.iter().copied().filter(|l| shared(l) && !keep(*l)).collect();
    let rows: Vec<Label> = a.labels.iter().copied().filter(|l| !shared(l)).collect();
    let columns: Vec<Label> = b.labels.iter().copied().filter(|l| !shared(l)).collect();
    let a = a.ordered(&[&batch[..], &rows, &inner].concat()).tensor;
    let b = b.ordered(&[&batch[..], &inner, &columns].concat()).tensor;
    let count = |shape: &[usize]| shape.iter().product::<usize>();
    let (of_a, of_b) = (a.shape(), b.shape());
    let (batches, k) = (count(&of_a[..batch.len()]), count(&of_a[batch.len() + rows.len()..]));
    let (m, n) = (count(&of_a[batch.len()..][..rows.len()]), count(&of_b[batch.len() + inner.len()..]));
    let shape = [&of_a[..batch.len() + rows.len()], &of_b[batch.len() + inner.len()..]].concat();
    let bytes = element_count(&shape).and_then(|n| n.checked_mul(T::DTYPE.size()));
    if bytes.is_none_or(|bytes| bytes > VALUE_BYTES_MAX) {
        return Err(format!("a product of shape {shape:?} is over the limit of {VALUE_BYTES_MAX} bytes"));
    }
    let mut tensor = Tensor::zeros(T::DTYPE, &shape);
    if tensor.is_empty() || k == 0 {
        // A sum over nothing is 0.
    } else if T::DTYPE == DType::F32 {
        let out = tensor.slice_mut::<f32>();
        matmul_f32(Isa::best(), a.slice(), b.slice(), (batches, m, k, n), &|i| (i, i), out, 1);
    } else {
        let operands = a.slice::<T>().chunks_exact(m * k).zip(b.slice::<T>().chunks_exact(k * n));
        for ((a, b), out) in operands.zip(tensor.slice_mut::<T>().chunks_exact_mut(m * n)) {
            product(a, b, out, k, n);
        }
    }
    Ok(Labelled { tensor, labels: [batch, rows, columns].concat() })
}

/// `a [m, k]` times `b [k, n]`, added to `out [m, n]`.
fn product<T: Number>(a: &[T], b: &[T], out: &mut [T], k: usize, n: usize) {
    for (row, out) in a.chunks_exact(k).zip(out.chunks_exact_mut(n)) {
        for (&x, b) in row.iter().zip(b.chunks_exact(n)) {
            out.iter_mut().zip(b).for_each(|(sum, &y)| *sum = sum.plus(x.times(y)));
        }
    }
}

impl Operator for Einsum {
    fn infer(&self, inputs: &[Option<&Fact>], _: usize) -> Result<Results, Unfit> {
        let facts = (0..inputs.len()).map(|i| needed(inputs, i)).collect::<Result<Vec<_>, _>>()?;
        let shapes: Vec<&[usize]> = facts.iter().map(|x| &x.shape[..]).collect();
        let Axes { result, lengths, .. } = self.axes(&shapes)?;
        let dtype = needed(inputs, 0)?.dtype;
        if dtype == DType::Bool || facts.iter().any(|x| x.dtype != dtype) {
            return Err("its operands are not numbers of one type".into());
        }
        Ok(vec![(dtype, result.iter().map(|&label| length(&lengths, label)).collect())])
    }

    fn run(&self, inputs: &[Option<TensorView<'_>>], _: usize) -> Result<Vec<Tensor>, String> {
        let views = (0..inputs.len()).map(|i| given(inputs, i)).collect::<Result<Vec<_>, _>>()?;
        let shapes: Vec<&[usize]> = views.iter().map(|x| x.shape).collect();
        let Axes { operands, result, lengths } = self.axes(&shapes)?;
        let mut all: Vec<Labelled> =
            views.iter().zip(&operands).map(|(x, labels)| reduced(x, labels, &lengths)).collect();
        let dtype = given(inputs, 0)?.dtype;
        with_number!(dtype, T => {
            // From the left, each operand is summed over what no one behind it needs.
            let mut done: Option<Labelled> = None;
            while !all.is_empty() {
                let next = all.remove(0);
                let (later, before) = (&all, done.as_ref());
                let wanted = |label: Label| {
                    result.contains(&label) || later.iter().any(|x| x.labels.contains(&label))
                };
                let next = next.summed::<T>(|label| {
                    wanted(label) || before.is_some_and(|before| before.labels.contains(&label))
                });
                done = Some(match done {
                    None => next,
                    Some(before) => {
                        let before = before.summed::<T>(|label| wanted(label) || next.labels.contains(&label));
                        contracted::<T>(before, next, wanted)?
                    }
                });
            }
            let done = done.ok_or("it has no operands")?;
            // Labels of length 1 may have been dropped as repeated: they are put in where the result has them.
            let own = row_major(done.tensor.shape());
            let shape: Vec<usize> = result.iter().map(|&label| length(&lengths, label)).collect();
            let step = |label: &Label| done.labels.iter().position(|l| l == label).map_or(0, |axis| own[axis]);
            let steps: Vec<usize> = result.iter().map(step).collect();
            Ok(vec![if done.labels == result { done.tensor } else { gathered(&done.tensor.view(), &shape, &steps) }])
        })
    }

    fn opset(&self) -> i64 {
        12
    }
}

#[cfg(test)]
mod tests {
    use crate::engine::graph::attributes::{Attribute, Attributes};

    use super::*;

    fn run(equation: &str, operands: &[Tensor]) -> Result<Tensor, String> {
        let attributes = Attributes::new(vec![("equation".to_owned(), Attribute::Text(equation.to_owned()))]);
        let call = Call {
            domain: "",
            name: "Einsum",
            opset: 13,
            attributes: &attributes,
            inputs: vec![],
            outputs: vec![],
        };
        let operator = einsum(&call)?;
        let facts: Vec<Fact> =
            operands.iter().map(|t| Fact::computed(t.dtype(), t.shape().to_vec())).collect();
        let results = operator.infer(&facts.iter().map(Some).collect::<Vec<_>>(), 1)?;
        let views: Vec<_> = operands.iter().map(|t| Some(t.view())).collect();
        let made = operator.run(&views, 1)?.remove(0);
        assert_eq!((made.dtype(), made.shape()), (results[0].0, &results[0].1[..]), "{equation}");
        Ok(made)
    }

    fn counted(shape: &[usize]) -> Tensor {
        let all: Vec<i64> = (1..=shape.iter().product::<usize>() as i64).collect();
        Tensor::from_slice(shape, &all)
    }

    #[test]
    fn an_equation_permutes_sums_and_takes_diagonals() {
        let x = counted(&[2, 3]);
        let of = |equation: &str, x: &Tensor| {
            run(equation, std::slice::from_ref(x)).unwrap().slice::<i64>().to_vec()
        };
        assert_eq!(of("ij->ji", &x), [1, 4, 2, 5, 3, 6]);
        assert_eq!(of("ba", &x), [1, 4, 2, 5, 3, 6]);
        assert_eq!(of("ij->j", &x), [5, 7, 9]);
        assert_eq!(of("...j->...", &x), [6, 15]);
        assert_eq!(of("ij->", &x), [21]);
        let square = counted(&[3, 3]);
        assert_eq!(of("ii->i", &square), [1, 5, 9]);
        assert_eq!(of("ii", &square), [15]);
        assert_eq!(of("...ii->...i", &counted(&[2, 2, 2])), [1, 4, 5, 8]);
    }

    #[test]
    fn two_operands_are_a_matrix_product() {
        let (a, b) = (counted(&[2, 3]), counted(&[3, 2]));
        let want = [22, 28, 49, 64];
        let made = run("ij,jk->ik", &[a.clone(), b.clone()]).unwrap();
        assert_eq!(made.slice::<i64>(), want);
        let as_f32 = |t: &Tensor| {
            Tensor::from_slice(t.shape(), &t.slice::<i64>().iter().map(|&x| x as f32).collect::<Vec<_>>())
        };
        let made = run("ij,jk", &[as_f32(&a), as_f32(&b)]).unwrap();
        assert_eq!(made.slice::<f32>(), want.map(|x| x as f32));
        let made = run("bij,bj->ib", &[counted(&[2, 2, 2]), counted(&[2, 2])]).unwrap();
        assert_eq!(made.slice::<i64>(), [5, 39, 11, 53]);
        let made = run("i,j->ij", &[counted(&[2]), counted(&[2])]).unwrap();
        assert_eq!(made.slice::<i64>(), [1, 2, 2, 4]);
    }

    #[test]
    fn the_ellipsis_broadcasts() {
        let made = run("...ij,...jk->...ik", &[counted(&[2, 1, 1, 2]), counted(&[3, 2, 1])]).unwrap();
        assert_eq!(made.slice::<i64>(), [5, 11, 17, 11, 25, 39]);
        let made = run("i...,i...->...", &[counted(&[2, 1]), counted(&[2, 2])]).unwrap();
        assert_eq!(made.slice::<i64>(), [7, 10]);
    }

    #[test]
    fn any_number_of_operands_is_multiplied() {
        let made = run("ij,jk,k->i", &[counted(&[2, 2]), counted(&[2, 2]), counted(&[2])]).unwrap();
        assert_eq!(made.slice::<i64>(), [27, 59]);
        let made = run(",i,", &[Tensor::scalar(2i64), counted(&[2]), Tensor::scalar(3i64)]).unwrap();
        assert_eq!(made.slice::<i64>(), [6, 12]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        for (equation, shapes) in [
            ("ij,jk", vec![vec![2, 3], vec![2, 2]]),
            ("ij", vec![vec![2]]),
            ("ij->ik", vec![vec![2, 2]]),
            ("ij->ii", vec![vec![2, 2]]),
            ("i1", vec![vec![2, 2]]),
            ("i....", vec![vec![2, 2]]),
            ("......", vec![vec![2, 2]]),
            ("i,j", vec![vec![2]]),
        ] {
            let operands: Vec<Tensor> = shapes.iter().map(|shape| counted(shape)).collect();
            assert!(run(equation, &operands).is_err(), "{equation}");
        }
    }
}
