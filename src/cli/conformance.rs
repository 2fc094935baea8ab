//! `octet conformance`: runs cases of ONNX's backend tests and compares with the list of those that fail.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use octet::engine::exec::Options;
use octet::engine::exec::session::Session;
use octet::engine::onnx::import;
use octet::engine::onnx::tensors::tensor_from_bytes;
use octet::engine::tensor::{DType, Tensor};
use octet::service::store::panic_text;

use crate::cli::{Error, print, read, write};

/// Longest time of a case. The longest takes a tenth of a second.
const SECONDS_MAX: u64 = 30;
/// Most characters of a reason in the list.
const REASON_MAX: usize = 160;

/// Arguments of `octet conformance`.
#[derive(clap::Args)]
pub(crate) struct Conformance {
    /// Folders of cases: each a folder with `model.onnx` and `test_data_set_0`, as in `onnx/backend/test/data/node`.
    #[arg(required = true)]
    folders: Vec<PathBuf>,
    /// The cases that are known to fail, a line each: `FOLDER/CASE: REASON`.
    #[arg(long, value_name = "FILE")]
    expected: PathBuf,
    /// Write the list anew.
    #[arg(long)]
    update: bool,
}

impl Conformance {
    /// Runs all cases; an error where the list is not right.
    pub(crate) fn run(self) -> Result<(), Error> {
        // A case that panics fails; its message is in the reason.
        std::panic::set_hook(Box::new(|_| {}));
        let mut failing = BTreeMap::new();
        let mut count = 0;
        for folder in &self.folders {
            let group = folder.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            let failed = |source| Error::File { tried: "listing", path: folder.clone(), source };
            for entry in std::fs::read_dir(folder).map_err(failed)? {
                let path = entry.map_err(failed)?.path();
                if !path.join("model.onnx").exists() {
                    continue;
                }
                count += 1;
                let case = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
                if let Err(reason) = limited(path) {
                    failing.insert(format!("{group}/{case}"), one_line(&reason));
                }
            }
        }
        if self.update {
            let list: String = failing.iter().map(|(case, reason)| format!("{case}: {reason}\n")).collect();
            write(&self.expected, list.as_bytes())?;
            return print(&format!("{} of {count} pass\n", count - failing.len()));
        }
        let known = read(&self.expected)?;
        let known = String::from_utf8_lossy(&known).into_owned();
        let known: Vec<&str> =
            known.lines().map(|line| line.split_once(':').map_or(line, |(case, _)| case)).collect();
        let mut text = String::new();
        let mut wrong = 0;
        for (case, reason) in failing.iter().filter(|(case, _)| !known.contains(&case.as_str())) {
            let _ = writeln!(text, "fails and is not listed: {case}: {reason}");
            wrong += 1;
        }
        for case in known.iter().filter(|case| !failing.contains_key(**case)) {
            let _ = writeln!(text, "is listed and passes, or is not there: {case}");
            wrong += 1;
        }
        let _ = writeln!(text, "{} of {count} pass", count - failing.len());
        print(&text)?;
        match wrong {
            0 => Ok(()),
            n => Err(Error::Work(format!("{n} cases are not as {} says", self.expected.display()))),
        }
    }
}

fn one_line(reason: &str) -> String {
    reason.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(REASON_MAX).collect()
}

/// Runs a case in a thread of its own, so that a panic or a loop without end is its failure and no more.
fn limited(folder: PathBuf) -> Result<(), String> {
    let (send, receive) = mpsc::channel();
    let work = move || {
        let done = std::panic::catch_unwind(|| case(&folder))
            .unwrap_or_else(|panic| Err(format!("panic: {}", panic_text(&*panic))));
        // Nobody listens where the time is over.
        let _ = send.send(done);
    };
    std::thread::spawn(work);
    let done = receive.recv_timeout(Duration::from_secs(SECONDS_MAX));
    done.unwrap_or_else(|_| Err(format!("not done in {SECONDS_MAX} s")))
}

fn case(folder: &Path) -> Result<(), String> {
    let bytes = std::fs::read(folder.join("model.onnx")).map_err(|e| e.to_string())?;
    let graph = import::import(&bytes).map_err(|e| e.to_string())?;
    let session = Session::new(graph, Options::default()).map_err(|e| e.to_string())?;
    let sets = (0..).map(|n| folder.join(format!("test_data_set_{n}"))).take_while(|set| set.exists());
    let mut count = 0;
    for set in sets {
        count += 1;
        let load = |kind: &str, i: usize| {
            let path = set.join(format!("{kind}_{i}.pb"));
            let bytes = std::fs::read(&path).map_err(|e| format!("{}: {e}", path.display()))?;
            tensor_from_bytes(&bytes).map(|(_, tensor)| tensor)
        };
        let inputs = (0..session.inputs().len()).map(|i| load("input", i)).collect::<Result<Vec<_>, _>>()?;
        let feeds: Vec<_> = session.inputs().iter().map(|p| p.name.as_str()).zip(&inputs).collect();
        let outputs = session.run(&feeds).map_err(|e| e.to_string())?;
        for (i, output) in outputs.iter().enumerate() {
            close(output, &load("output", i)?).map_err(|e| format!("output {i}: {e}"))?;
        }
    }
    if count == 0 { Err("no data".to_owned()) } else { Ok(()) }
}

/// Integers must be equal; reals as near as ONNX's own runner wants them, halves as near as they are exact.
fn close(got: &Tensor, want: &Tensor) -> Result<(), String> {
    if (got.dtype(), got.shape()) != (want.dtype(), want.shape()) {
        let ((d, s), (wd, ws)) = ((got.dtype(), got.shape()), (want.dtype(), want.shape()));
        return Err(format!("{d}{s:?}, expected {wd}{ws:?}"));
    }
    let (relative, absolute) = match got.dtype() {
        DType::BF16 => (2e-2, 1e-2),
        DType::F16 => (1e-3, 1e-3),
        DType::F32 | DType::F64 => (1e-3, 1e-7),
        _ => (0.0, 0.0),
    };
    let near = |x: f64, y: f64| {
        x == y || (x.is_nan() && y.is_nan()) || (x - y).abs() <= absolute + relative * y.abs()
    };
    let (x, y) = (got.to_f64(), want.to_f64());
    match x.iter().zip(&y).position(|(&x, &y)| !near(x, y)) {
        Some(i) => Err(format!("element {i} is {}, expected {}", x[i], y[i])),
        None => Ok(()),
    }
}
