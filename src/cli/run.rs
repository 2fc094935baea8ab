//! `octet run`: a model over arrays from a file, the outputs into a file.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use octet::engine::exec::session::Session;
use octet::engine::exec::{Options, Port, ShapesOf};
use octet::engine::tensor::{Tensor, npy};

use crate::cli::{Error, PassArgs, cores, dims_text, isa, load, pool};

/// Most bytes of arrays that are read: what a mistaken path could cost.
const ARRAY_BYTES_MAX: u64 = 64 << 30;

/// Arguments of `octet run`.
#[derive(clap::Args)]
pub(crate) struct Run {
    /// The ONNX model, float or INT8.
    model: PathBuf,
    /// `.npz` with an array for each input of the model, named as the input.
    #[arg(long, value_name = "FILE")]
    inputs: PathBuf,
    /// Where to write the outputs: `.npz` with an array for each, named as the output.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Instruction set of the kernels [default: the best that the CPU has].
    #[arg(long, value_name = "NAME", env = "OCTET_ISA")]
    isa: Option<String>,
    #[command(flatten)]
    passes: PassArgs,
    /// Run QuantizeLinear and DequantizeLinear one by one in float, as ONNX defines them, instead of on integers.
    #[arg(long)]
    no_integers: bool,
    /// Threads [default: one for each core].
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Run so many samples at a time and join the outputs [default: all at once].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    batch: Option<u64>,
    /// Bytes of memory that the values of a run may take: what takes more is refused. As `limits.model_memory_bytes` of the
    /// server.
    #[arg(long, value_name = "BYTES", default_value_t = 8 << 30)]
    memory_bytes_max: u64,
}

impl Run {
    /// Runs the model.
    pub(crate) fn run(self) -> Result<(), Error> {
        let threads = self.threads.unwrap_or_else(cores).max(1);
        let options = Options {
            isa: isa(self.isa.as_deref())?,
            threads,
            passes: self.passes.passes(),
            integers: !self.no_integers,
            memory_bytes_max: self.memory_bytes_max,
            ..Options::default()
        };
        let pool = pool(threads)?;
        let session = pool.install(|| load(&self.model, options))?;
        let arrays =
            npy::read_npz(&self.inputs, ARRAY_BYTES_MAX).map_err(|e| Error::work(&self.inputs, e))?;
        let inputs = pick(&self.inputs, arrays, session.inputs())?;
        let batch = self.batch.map(|n| usize::try_from(n).unwrap_or(usize::MAX));
        let outputs =
            pool.install(|| run(&session, &inputs, batch)).map_err(|e| Error::work(&self.model, e))?;
        save(&self.output, &session, &outputs)
    }
}

/// The arrays that the model takes, in its order; further ones, such as labels, are left out.
fn pick(path: &Path, arrays: Vec<(String, Tensor)>, ports: &[Port]) -> Result<Vec<(String, Tensor)>, Error> {
    // An .npy file is one array without a name.
    if let ([port], [(name, array)]) = (ports, &arrays[..])
        && name.is_empty()
    {
        return Ok(vec![(port.name.clone(), array.clone())]);
    }
    let find = |port: &Port| {
        let found = arrays.iter().find(|(name, _)| *name == port.name);
        found.cloned().ok_or_else(|| {
            let names: Vec<_> = arrays.iter().map(|(name, _)| name.as_str()).collect();
            let (name, dims) = (&port.name, dims_text(&port.dims));
            Error::work(path, format!("no array `{name}` ({} {dims}); it has {names:?}", port.dtype))
        })
    };
    ports.iter().map(find).collect()
}

fn run(session: &Session, inputs: &[(String, Tensor)], batch: Option<usize>) -> Result<Vec<Tensor>, String> {
    let run = |inputs: &[(String, Tensor)]| {
        let refs: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
        session.run(&refs).map_err(|e| e.to_string())
    };
    let Some(batch) = batch else { return run(inputs) };
    let samples = samples(inputs)?;
    if batch >= samples {
        return run(inputs);
    }
    let axes = axes_of_samples(session, inputs);
    let mut parts: Vec<Vec<Tensor>> = Vec::new();
    for at in (0..samples).step_by(batch) {
        let count = batch.min(samples - at);
        let part: Vec<_> = inputs.iter().map(|(n, t)| (n.clone(), rows(t, at, count))).collect();
        parts.push(run(&part)?);
    }
    let joined = |(n, port): (usize, &Port)| {
        let parts: Vec<&Tensor> = parts.iter().map(|part| &part[n]).collect();
        let axis = match axes.get(&port.name) {
            Some(axis) => *axis,
            // Nobody can tell before the run: then samples come first, or it is refused.
            None => Some(0).filter(|_| {
                let counts = (0..samples).step_by(batch).map(|at| batch.min(samples - at));
                parts.iter().zip(counts).all(|(part, count)| part.shape().first() == Some(&count))
            }),
        };
        let axis = axis.ok_or_else(|| {
            let shape = parts[0].shape();
            format!("--batch: output `{}` of shape {shape:?} has no axis that samples lie along", port.name)
        })?;
        join(&parts, axis).map_err(|e| format!("--batch: output `{}`: {e}", port.name))
    };
    session.outputs().iter().enumerate().map(joined).collect()
}

/// For each value whose shape is known before the run the axis that grows with the first axis of the inputs, evenly and
/// alone.
fn axes_of_samples(session: &Session, inputs: &[(String, Tensor)]) -> HashMap<String, Option<usize>> {
    let shapes = |batch: usize| -> HashMap<String, Vec<usize>> {
        let of = |(_, tensor): &(String, Tensor)| [&[batch], &tensor.shape()[1..]].concat();
        let shapes = session.value_shapes(&inputs.iter().map(of).collect::<Vec<_>>());
        // A model that takes one batch only has no other shapes.
        shapes.unwrap_or_default().into_iter().map(|(name, _, shape)| (name, shape)).collect()
    };
    let (two, three) = (shapes(2), shapes(3));
    let axis = |two: &[usize], three: &[usize]| {
        let mut growing = (0..two.len()).filter(|&axis| three.get(axis) != Some(&two[axis]));
        let axis = growing.next().filter(|_| two.len() == three.len() && growing.next().is_none())?;
        (two[axis] * 3 == three[axis] * 2).then_some(axis)
    };
    let known = |(name, two): (String, Vec<usize>)| {
        let axis = axis(&two, three.get(&name)?);
        Some((name, axis))
    };
    two.into_iter().filter_map(known).collect()
}

fn samples(inputs: &[(String, Tensor)]) -> Result<usize, String> {
    let mut lengths = inputs.iter().map(|(name, t)| (name, t.shape().first().copied()));
    let Some((_, Some(samples))) = lengths.next() else {
        return Err("--batch needs inputs with a first dimension".to_owned());
    };
    match lengths.find(|(_, length)| *length != Some(samples)) {
        Some((name, _)) => {
            Err(format!("--batch: input `{name}` has not {samples} samples as the first input has"))
        }
        None => Ok(samples),
    }
}

fn rows(tensor: &Tensor, at: usize, count: usize) -> Tensor {
    let mut shape = tensor.shape().to_vec();
    let row_bytes = tensor.view().bytes.len() / shape[0];
    shape[0] = count;
    let bytes = &tensor.view().bytes[at * row_bytes..(at + count) * row_bytes];
    Tensor::from_bytes(tensor.dtype(), &shape, bytes).expect("so many rows of so many bytes")
}

fn join(parts: &[&Tensor], axis: usize) -> Result<Tensor, String> {
    let first = parts.first().ok_or("no samples")?;
    let mut shape = first.shape().to_vec();
    let mismatch = |part: &&&Tensor| {
        let others = |shape: &[usize]| [&shape[..axis], &shape[axis + 1..]].concat();
        part.shape().len() != shape.len() || others(part.shape()) != others(first.shape())
    };
    if let Some(other) = parts.iter().find(mismatch) {
        return Err(format!("shapes {:?} and {:?} cannot be joined along axis {axis}", shape, other.shape()));
    }
    let outer: usize = shape[..axis].iter().product();
    shape[axis] = parts.iter().map(|part| part.shape()[axis]).sum();
    let stretch = |part: &Tensor, i: usize| {
        let bytes = part.view().bytes;
        let each = bytes.len() / outer.max(1);
        bytes[i * each..(i + 1) * each].to_vec()
    };
    let bytes: Vec<u8> =
        (0..outer).flat_map(|i| parts.iter().flat_map(move |part| stretch(part, i))).collect();
    Ok(Tensor::from_bytes(first.dtype(), &shape, &bytes).expect("so many rows of so many bytes"))
}

fn save(path: &Path, session: &Session, outputs: &[Tensor]) -> Result<(), Error> {
    let file = File::create(path);
    let file = file.map_err(|source| Error::File { tried: "writing", path: path.to_owned(), source })?;
    let named: Vec<_> = session.outputs().iter().map(|p| p.name.as_str()).zip(outputs).collect();
    let writer = npy::write_npz(BufWriter::new(file), &named).map_err(|e| Error::work(path, e))?;
    writer.into_inner().map(drop).map_err(|e| Error::work(path, e))
}

#[cfg(test)]
mod tests {
    use octet::engine::graph::op::Op;
    use octet::engine::graph::{Dim, Graph, Node, Value};

    use octet::engine::tensor::DType;

    use super::*;

    /// `y` is `x` with its first two axes exchanged, `z` is `x` itself, `s` its first dimension.
    fn session() -> Session {
        let mut g = Graph::default();
        let dims = || Some(vec![Dim::Symbol("N".to_owned()), Dim::Known(2), Dim::Known(3)]);
        let mut value = |name: &str| {
            g.add_value(Value {
                name: name.to_owned(),
                dtype: Some(DType::F32),
                dims: dims(),
                ..Value::default()
            })
        };
        let [x, y, z, s] = ["x", "y", "z", "s"].map(&mut value);
        let node = |op, to| Node::new(String::new(), op, vec![Some(x)], vec![to]);
        g.nodes = vec![
            node(Op::Transpose { perm: vec![1, 0, 2] }, y),
            node(Op::Identity, z),
            node(Op::Shape { start: 0, end: Some(1) }, s),
        ];
        (g.inputs, g.outputs) = (vec![x], vec![y, z, s]);
        g.value_mut(s).dtype = Some(DType::I64);
        Session::new(g, Options::default()).unwrap()
    }

    #[test]
    fn batches_are_joined_along_the_axis_of_samples_or_refused_by_name() {
        let values: Vec<f32> = (0..30).map(|i| i as f32).collect();
        let inputs = [("x".to_owned(), Tensor::from_slice(&[5, 2, 3], &values))];
        let session = session();
        let refused = run(&session, &inputs, Some(2)).unwrap_err();
        assert!(refused.contains("output `s` of shape [1]"), "{refused}");
        let axes = axes_of_samples(&session, &inputs);
        assert_eq!((axes["y"], axes["z"], axes["s"]), (Some(1), Some(0), None));
        let whole = run(&session, &inputs, None).unwrap();
        for batch in [1, 2, 3] {
            let parts: Vec<Vec<Tensor>> = (0..5)
                .step_by(batch)
                .map(|at| {
                    let part = rows(&inputs[0].1, at, batch.min(5 - at));
                    session.run(&[("x", &part)]).unwrap()
                })
                .collect();
            for (output, axis) in [(0, 1), (1, 0)] {
                let parts: Vec<&Tensor> = parts.iter().map(|part| &part[output]).collect();
                assert_eq!(join(&parts, axis).unwrap(), whole[output], "{batch} {axis}");
            }
        }
    }

    #[test]
    fn parts_of_different_shapes_are_not_joined() {
        let of = |shape: &[usize]| Tensor::from_slice(shape, &vec![1f32; shape.iter().product()]);
        let (a, b) = (of(&[1, 3]), of(&[1, 4]));
        assert!(join(&[&a, &b], 0).unwrap_err().contains("[1, 3] and [1, 4]"));
        assert_eq!(join(&[&a, &b], 1).unwrap().shape(), [1, 7]);
    }
}
