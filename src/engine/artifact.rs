//! The artifact: a QDQ ONNX file and a JSON manifest that says what it was made from. Both depend on the inputs only:
//! no clock, no host, no order of threads. The file carries the digest of the manifest, the manifest those of the inputs.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::engine::graph::Graph;
use crate::engine::onnx::export;
use crate::engine::quant::Recipe;
use crate::engine::tensor::qparams::QuantParams;

/// Version of the numeric contract: i32 accumulators are exact; requantization is an f32 product with
/// `scale_x · scale_w / scale_y`, rounded half to even, plus zero point, saturated.
pub const CONTRACT: u32 = 1;
/// Version of the engine.
pub const ENGINE: &str = concat!("octet ", env!("CARGO_PKG_VERSION"));

/// A file that went in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Source {
    /// Its SHA-256 in hexadecimal.
    pub sha256: String,
    /// Its length.
    pub bytes: u64,
}

impl Source {
    /// The file that `bytes` are.
    pub fn of(bytes: &[u8]) -> Source {
        Source { sha256: sha256(bytes), bytes: bytes.len() as u64 }
    }

    /// The file at `path`.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn of_file(path: &Path) -> io::Result<Source> {
        let mut reader = BufReader::with_capacity(1 << 18, File::open(path)?);
        let (mut hash, mut bytes) = (Sha256::new(), 0);
        loop {
            let part = reader.fill_buf()?;
            if part.is_empty() {
                return Ok(Source { sha256: hex::encode(hash.finalize()), bytes });
            }
            hash.update(part);
            let length = part.len();
            bytes += length as u64;
            reader.consume(length);
        }
    }
}

/// Samples that went in, whatever file they came in and in which order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Samples {
    /// SHA-256 of the sorted digests of the samples, in hexadecimal.
    pub sha256: String,
    /// How many there are.
    pub samples: u64,
}

/// Everything that an artifact depends on.
#[derive(Debug)]
pub struct Origin<'a> {
    /// The float model.
    pub model: &'a Source,
    /// The calibration data.
    pub calibration: &'a Samples,
    /// The evaluation data, where there are any of their own.
    pub evaluation: Option<&'a Samples>,
    /// The recipe in full.
    pub recipe: &'a Recipe,
    /// Name and parameters of each value that has codes, in execution order.
    pub values: &'a [(String, QuantParams)],
    /// Name of each layer with weights and the largest code that they may have.
    pub max_codes: &'a [(String, u8)],
}

/// The manifest of an artifact.
pub fn manifest(origin: &Origin<'_>) -> Value {
    let value = |(name, params): &(String, QuantParams)| {
        json!({
            "name": name,
            "dtype": params.dtype.name(),
            "scale": params.scale[0],
            "zero_point": params.zero_point[0],
        })
    };
    let layer = |(node, max_code): &(String, u8)| json!({ "node": node, "max_code": max_code });
    json!({
        "engine": ENGINE,
        "contract": CONTRACT,
        "precision": origin.recipe.scheme.precision(),
        "model": origin.model,
        "calibration": origin.calibration,
        "evaluation": origin.evaluation,
        "recipe": origin.recipe,
        "values": origin.values.iter().map(value).collect::<Vec<_>>(),
        "layers": origin.max_codes.iter().map(layer).collect::<Vec<_>>(),
    })
}

/// The ONNX file of a QDQ graph.
pub fn write(graph: &Graph, manifest: &Value) -> Vec<u8> {
    let digest = sha256(manifest.to_string().as_bytes());
    let metadata = [
        ("octet.engine".to_owned(), ENGINE.to_owned()),
        ("octet.contract".to_owned(), CONTRACT.to_string()),
        ("octet.manifest".to_owned(), format!("sha256:{digest}")),
    ];
    export::export(graph, &metadata)
}

/// The SHA-256 of bytes, in hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::tensor::DType;

    #[test]
    fn the_same_inputs_give_the_same_manifest() {
        let source = Source { sha256: "00".to_owned(), bytes: 1 };
        let samples = Samples { sha256: "01".to_owned(), samples: 2 };
        let recipe = Recipe::default();
        let values = [("x".to_owned(), QuantParams::per_tensor(0.1, 3, DType::U8))];
        let make = || {
            manifest(&Origin {
                model: &source,
                calibration: &samples,
                evaluation: None,
                recipe: &recipe,
                values: &values,
                max_codes: &[("conv".to_owned(), 64)],
            })
        };
        assert_eq!(make().to_string(), make().to_string());
        assert_eq!(make()["values"][0]["zero_point"], 3);
        assert_eq!(make()["precision"], "int8");
        assert_eq!(write(&Graph::default(), &make()), write(&Graph::default(), &make()));
    }
}
