//! `octet bench`: how long a run takes, and what it costs.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Instant;

use octet::engine::exec::session::Session;
use octet::engine::exec::{Layer, Memory, Options, Port};
use octet::engine::graph::Dim;
use octet::engine::tensor::{DType, Tensor};
use serde_json::json;

use crate::cli::{Error, PassArgs, cores, dims_text, isa, load, pool, print};

/// Arguments of `octet bench`.
#[derive(clap::Args)]
pub(crate) struct Bench {
    /// The ONNX model, float or INT8.
    model: PathBuf,
    /// Threads [default: one for each core].
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Length of a first dimension that is free.
    #[arg(long, value_name = "B", default_value_t = 1)]
    batch: usize,
    /// Shape of an input: `NAME:1,3,224,224`; may be given more than once.
    #[arg(long, value_name = "NAME:DIMS", value_parser = named_shape)]
    shape: Vec<(String, Vec<usize>)>,
    /// Timed runs, after some that are not.
    #[arg(long, value_name = "R", default_value_t = 50)]
    runs: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Print the time of each layer too.
    #[arg(long)]
    layers: bool,
    /// Wait for lines `run N` on standard input and answer each with the times in JSON: for measurements that
    /// take turns with other programs.
    #[arg(long, conflicts_with_all = ["json", "layers"])]
    bursts: bool,
    /// Instruction set of the kernels [default: the best that the CPU has].
    #[arg(long, value_name = "NAME", env = "OCTET_ISA")]
    isa: Option<String>,
    /// Whether packed weights should be fast or small. The answers are the same.
    #[arg(long, value_name = "fast|small", default_value = "fast", value_parser = memory_named)]
    memory: Memory,
    #[command(flatten)]
    passes: PassArgs,
}

fn memory_named(name: &str) -> Result<Memory, String> {
    Memory::named(name).ok_or_else(|| "fast or small".to_owned())
}

fn named_shape(text: &str) -> Result<(String, Vec<usize>), String> {
    // A name may hold colons itself.
    let (name, dims) = text.rsplit_once(':').ok_or("must be NAME:1,3,224,224")?;
    let dims: Result<Vec<usize>, _> = dims.split(',').map(|d| d.trim().parse()).collect();
    Ok((name.to_owned(), dims.map_err(|e| format!("`{text}`: {e}"))?))
}

/// What was found.
struct Found {
    /// Of each run, sorted.
    times_ms: Vec<f64>,
    load_ms: f64,
    macs: u64,
    layers: Vec<Layer>,
}

impl Bench {
    /// Times the model.
    pub(crate) fn run(self) -> Result<(), Error> {
        let threads = self.threads.unwrap_or_else(cores).max(1);
        let options = Options {
            isa: isa(self.isa.as_deref())?,
            threads,
            passes: self.passes.passes(),
            memory: self.memory,
            ..Options::default()
        };
        let isa_name = options.isa.name();
        let pool = pool(threads)?;
        if self.bursts {
            return pool.install(|| self.answer(options));
        }
        let found = pool.install(|| self.measure(options))?;
        let rank = |share: f64| found.times_ms[((found.times_ms.len() - 1) as f64 * share).round() as usize];
        let (median_ms, min_ms, p90_ms) = (rank(0.5), rank(0.0), rank(0.9));
        let Found { load_ms, macs, ref layers, .. } = found;
        let peak_rss_bytes = peak_rss_bytes();
        if self.json {
            let layer = |l: &Layer| {
                json!({ "node": l.node, "op": l.op, "integer": l.integer, "macs": l.macs, "shape": l.shape,
                    "ms": l.seconds * 1e3 })
            };
            let mut value = json!({
                "model": self.model, "isa": isa_name, "threads": threads, "batch": self.batch, "runs": self.runs,
                "median_ms": median_ms, "min_ms": min_ms, "p90_ms": p90_ms, "load_ms": load_ms,
                "peak_rss_bytes": peak_rss_bytes, "macs": macs,
            });
            if self.layers {
                value["layers"] = layers.iter().map(layer).collect();
            }
            return print(&format!("{value}\n"));
        }
        let gmacs = macs as f64 / median_ms / 1e6;
        let mut text = format!(
            "median {median_ms:.3} ms, min {min_ms:.3} ms, p90 {p90_ms:.3} ms of {} runs; {threads} thread(s), \
             batch {}, {isa_name}\nloaded in {load_ms:.1} ms; {:.1} M multiply-accumulates a run, {gmacs:.1} GMAC/s; \
             peak memory {:.1} MB\n",
            self.runs,
            self.batch,
            macs as f64 / 1e6,
            peak_rss_bytes as f64 / 1e6,
        );
        if self.layers {
            layer_table(&mut text, layers);
        }
        print(&text)
    }

    /// Runs the model as often as each line of standard input says.
    fn answer(&self, options: Options) -> Result<(), Error> {
        let isa = options.isa.name();
        let start = Instant::now();
        let session = load(&self.model, options)?;
        let load_ms = start.elapsed().as_secs_f64() * 1e3;
        let inputs = self.inputs(&session)?;
        let refs: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
        let run = || session.run(&refs).map_err(|e| Error::work(&self.model, e));
        run()?;
        print(&format!("{}\n", json!({ "load_ms": load_ms, "isa": isa })))?;
        for line in std::io::stdin().lines() {
            let line = line.map_err(|e| Error::Usage(format!("standard input: {e}")))?;
            let answer = match line.split_whitespace().collect::<Vec<_>>()[..] {
                ["run", count] => {
                    let count: usize = count.parse().map_err(|e| Error::Usage(format!("`{line}`: {e}")))?;
                    let mut times_ms = Vec::new();
                    for _ in 0..count {
                        let start = Instant::now();
                        let outputs = run()?;
                        times_ms.push(start.elapsed().as_secs_f64() * 1e3);
                        drop(outputs);
                    }
                    json!({ "wall_ms": times_ms })
                }
                ["stat"] => json!({ "peak_rss_bytes": peak_rss_bytes() }),
                _ => return Err(Error::Usage(format!("`{line}` is neither `run N` nor `stat`"))),
            };
            print(&format!("{answer}\n"))?;
        }
        Ok(())
    }

    fn measure(&self, options: Options) -> Result<Found, Error> {
        let start = Instant::now();
        let session = load(&self.model, options)?;
        let load_ms = start.elapsed().as_secs_f64() * 1e3;
        let inputs = self.inputs(&session)?;
        let refs: Vec<(&str, &Tensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
        let run = || session.run(&refs).map_err(|e| Error::work(&self.model, e));
        for _ in 0..(self.runs / 10).clamp(2, 10) {
            run()?;
        }
        let mut times_ms = Vec::new();
        for _ in 0..self.runs.max(1) {
            let start = Instant::now();
            let outputs = run()?;
            times_ms.push(start.elapsed().as_secs_f64() * 1e3);
            drop(outputs);
        }
        times_ms.sort_by(f64::total_cmp);
        let seconds = || start.elapsed().as_secs_f64();
        let runs = if self.layers { self.runs.clamp(1, 20) } else { 1 };
        let layers = session.layers(&refs, runs, &seconds).map_err(|e| Error::work(&self.model, e))?;
        let macs = layers.iter().map(|l| l.macs).sum();
        Ok(Found { times_ms, load_ms, macs, layers })
    }

    fn inputs(&self, session: &Session) -> Result<Vec<(String, Tensor)>, Error> {
        let ports = session.inputs();
        if let Some((name, _)) = self.shape.iter().find(|(name, _)| ports.iter().all(|p| p.name != *name)) {
            let names: Vec<_> = ports.iter().map(|p| p.name.as_str()).collect();
            return Err(Error::Usage(format!("--shape: the model has no input `{name}`, only {names:?}")));
        }
        let make = |port: &Port| {
            let given = self.shape.iter().find(|(name, _)| *name == port.name);
            let shape = given.map_or_else(|| self.shape_of(port), |(_, shape)| Ok(shape.clone()))?;
            Ok((port.name.clone(), made_up(port.dtype, &shape)))
        };
        ports.iter().map(make).collect()
    }

    fn shape_of(&self, port: &Port) -> Result<Vec<usize>, Error> {
        let length = |(n, dim): (usize, &Dim)| match dim {
            Dim::Known(length) => Ok(*length),
            Dim::Symbol(_) | Dim::Unknown if n == 0 => Ok(self.batch),
            Dim::Symbol(_) | Dim::Unknown => {
                let (name, dims) = (&port.name, dims_text(&port.dims));
                Err(Error::Usage(format!("input `{name}` is {dims}: give --shape {name}:…")))
            }
        };
        port.dims.iter().enumerate().map(length).collect()
    }
}

/// Numbers from −1 to 1, the same each time; indices are 0.
fn made_up(dtype: DType, shape: &[usize]) -> Tensor {
    let mut tensor = Tensor::zeros(dtype, shape);
    if dtype == DType::F32 {
        for (i, x) in tensor.slice_mut::<f32>().iter_mut().enumerate() {
            *x = (i as u32).wrapping_mul(2_654_435_761) as f32 / (1u64 << 31) as f32 - 1.0;
        }
    }
    tensor
}

/// The most memory that this process has held; 0 where the system does not tell.
fn peak_rss_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kb = line.and_then(|l| l.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kb.unwrap_or(0) * 1024
}

fn layer_table(text: &mut String, layers: &[Layer]) {
    let total: f64 = layers.iter().map(|l| l.seconds).sum();
    let _ = writeln!(text, "{:>9} {:>6}  {:<16} {:>9}  shape, node", "ms", "share", "step", "GMAC/s");
    for layer in layers {
        let share = if total > 0.0 { layer.seconds / total * 100.0 } else { 0.0 };
        let speed = if layer.macs > 0 && layer.seconds > 0.0 {
            format!("{:.1}", layer.macs as f64 / layer.seconds / 1e9)
        } else {
            String::new()
        };
        let kind = if layer.integer { "i8" } else { "f32" };
        let _ = writeln!(
            text,
            "{:>9.4} {share:>5.1}%  {:<12} {kind:<3} {speed:>9}  {:?} {}",
            layer.seconds * 1e3,
            layer.op,
            layer.shape,
            layer.node
        );
    }
}
