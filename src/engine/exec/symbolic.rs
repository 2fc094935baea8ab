//! Shapes with names in them: what every value of a model has for dimensions as long as `batch` and `length` are
//! open. Found by planning for a few lengths and looking at what changes with which: a dimension that grows evenly
//! with one of them is a multiple of it.

use crate::engine::graph::Dim;
use crate::engine::tensor::DType;

use super::{Port, ShapesOf};

/// Lengths that open dimensions take; apart, so that a result tells which of them it is. Networks that halve an
/// image over and over refuse lengths that do not divide: then each is so many times as long.
const LENGTHS: [usize; 8] = [7, 11, 13, 17, 19, 23, 29, 31];
const MULTIPLES: [usize; 2] = [1, 32];

/// Name, type and dimensions of every value.
pub type Symbolic = Vec<(String, DType, Vec<Dim>)>;

/// The shapes of all values that do not depend on data, in the order of the graph; empty where the model takes
/// none of the lengths that were tried.
pub fn shapes(model: &dyn ShapesOf) -> Symbolic {
    let symbols = symbols(model.inputs());
    if symbols.len() > LENGTHS.len() || model.inputs().iter().any(|p| !p.ranked) {
        return Vec::new();
    }
    MULTIPLES.iter().find_map(|&step| probe(model, &symbols, step)).unwrap_or_default()
}

/// One open dimension of the inputs: its name, or the place of one without.
#[derive(Clone, Debug, PartialEq)]
enum Symbol {
    Named(String),
    At(usize, usize),
}

fn symbol(dim: &Dim, input: usize, axis: usize) -> Option<Symbol> {
    match dim {
        Dim::Known(_) => None,
        Dim::Symbol(name) => Some(Symbol::Named(name.clone())),
        Dim::Unknown => Some(Symbol::At(input, axis)),
    }
}

fn symbols(inputs: &[Port]) -> Vec<Symbol> {
    let mut all: Vec<Symbol> = Vec::new();
    for (input, port) in inputs.iter().enumerate() {
        for (axis, dim) in port.dims.iter().enumerate() {
            all.extend(symbol(dim, input, axis).filter(|s| !all.contains(s)));
        }
    }
    all
}

fn probe(model: &dyn ShapesOf, symbols: &[Symbol], step: usize) -> Option<Symbolic> {
    let base: Vec<usize> = LENGTHS[..symbols.len()].iter().map(|n| n * step).collect();
    let shapes_at = |lengths: &[usize]| {
        let shape = |(input, port): (usize, &Port)| {
            let length = |(axis, dim): (usize, &Dim)| match (dim, symbol(dim, input, axis)) {
                (Dim::Known(n), _) => *n,
                (_, of) => {
                    symbols.iter().zip(lengths).find(|(s, _)| Some(*s) == of.as_ref()).map_or(1, |f| *f.1)
                }
            };
            port.dims.iter().enumerate().map(length).collect()
        };
        let inputs: Vec<Vec<usize>> = model.inputs().iter().enumerate().map(shape).collect();
        model.value_shapes(&inputs).ok()
    };
    let at_base = shapes_at(&base)?;
    // For each symbol the shapes one and two steps further.
    let mut further = Vec::new();
    for k in 0..symbols.len() {
        let moved = |steps: usize| {
            let mut lengths = base.clone();
            lengths[k] += steps * step;
            shapes_at(&lengths)
        };
        further.push([moved(1)?, moved(2)?]);
    }
    let mut all = Vec::with_capacity(at_base.len());
    for (name, dtype, shape) in &at_base {
        let of = |shapes: &[(String, DType, Vec<usize>)]| {
            shapes.iter().find(|s| s.0 == *name).map(|s| s.2.clone())
        };
        let moved: Option<Vec<[Vec<usize>; 2]>> =
            further.iter().map(|[one, two]| Some([of(one)?, of(two)?])).collect();
        let dims = match moved {
            Some(moved) if moved.iter().flatten().all(|s| s.len() == shape.len()) => {
                (0..shape.len()).map(|axis| dimension(axis, shape, &moved, symbols, &base, step)).collect()
            }
            _ => vec![Dim::Unknown; shape.len()],
        };
        all.push((name.clone(), *dtype, dims));
    }
    Some(all)
}

/// One dimension: a number, a symbol, a multiple of one, or unknown.
fn dimension(
    axis: usize,
    shape: &[usize],
    moved: &[[Vec<usize>; 2]],
    symbols: &[Symbol],
    base: &[usize],
    step: usize,
) -> Dim {
    let here = shape[axis] as i64;
    let grows = |k: usize| {
        let (one, two) =
            (moved[k][0][axis] as i64 - here, moved[k][1][axis] as i64 - moved[k][0][axis] as i64);
        (one, two)
    };
    let changing: Vec<usize> = (0..symbols.len()).filter(|&k| grows(k) != (0, 0)).collect();
    let [k] = changing[..] else {
        return if changing.is_empty() { Dim::Known(shape[axis]) } else { Dim::Unknown };
    };
    let (one, two) = grows(k);
    let Symbol::Named(name) = &symbols[k] else { return Dim::Unknown };
    let (step, length) = (step as i64, base[k] as i64);
    if one != two || one % step != 0 {
        return Dim::Unknown;
    }
    let factor = one / step;
    match (factor, here - factor * length) {
        (1, 0) => Dim::Symbol(name.clone()),
        (_, 0) => Dim::Symbol(format!("{factor}*{name}")),
        (1, more) if more > 0 => Dim::Symbol(format!("{name} + {more}")),
        _ => Dim::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dimension_that_grows_evenly_with_one_symbol_is_a_multiple_of_it() {
        let symbols = [Symbol::Named("batch".to_owned()), Symbol::Named("length".to_owned())];
        let base = [7, 11];
        let check = |f: fn(usize, usize) -> usize, want: &str| {
            let at = |b: usize, l: usize| vec![f(b, l)];
            let moved = [[at(8, 11), at(9, 11)], [at(7, 12), at(7, 13)]];
            assert_eq!(dimension(0, &at(7, 11), &moved, &symbols, &base, 1).to_string(), want);
        };
        check(|_, _| 5, "5");
        check(|b, _| b, "batch");
        check(|b, _| 12 * b, "12*batch");
        check(|_, l| l + 1, "length + 1");
        check(|b, l| b * l, "?");
        check(|_, l| l / 2, "?");
    }
}
