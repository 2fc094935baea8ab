//! `octet run`: a model over arrays from a file, the outputs into a file.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use octet::engine::exec::session::Session;
use octet::engine::exec::{Options, Port};
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
    let mut parts: Vec<Vec<Tensor>> = Vec::new();
    for at in (0..samples).step_by(batch) {
        let count = batch.min(samples - at);
        let part: Vec<_> = inputs.iter().map(|(n, t)| (n.clone(), rows(t, at, count))).collect();
        let outputs = run(&part)?;
        if let Some(o) = outputs.iter().find(|o| o.shape().first() != Some(&count)) {
            return Err(format!("an output of shape {:?} cannot be joined along {count} samples", o.shape()));
        }
        parts.push(outputs);
    }
    let outputs = parts.first().map_or(0, Vec::len);
    (0..outputs).map(|n| join(parts.iter().map(|part| &part[n]))).collect()
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

fn join<'a>(parts: impl Iterator<Item = &'a Tensor> + Clone) -> Result<Tensor, String> {
    let Some(first) = parts.clone().next() else { return Err("no samples".to_owned()) };
    let mut shape = first.shape().to_vec();
    shape[0] = parts.clone().map(|p| p.shape()[0]).sum();
    let bytes: Vec<u8> = parts.flat_map(|p| p.view().bytes).copied().collect();
    Tensor::from_bytes(first.dtype(), &shape, &bytes)
        .ok_or_else(|| format!("outputs of different shapes cannot be joined to {shape:?}"))
}

fn save(path: &Path, session: &Session, outputs: &[Tensor]) -> Result<(), Error> {
    let file = File::create(path);
    let file = file.map_err(|source| Error::File { tried: "writing", path: path.to_owned(), source })?;
    let named: Vec<_> = session.outputs().iter().map(|p| p.name.as_str()).zip(outputs).collect();
    let writer = npy::write_npz(BufWriter::new(file), &named).map_err(|e| Error::work(path, e))?;
    writer.into_inner().map(drop).map_err(|e| Error::work(path, e))
}
