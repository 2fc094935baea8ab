//! Tensors to the bytes of a response: JSON, or JSON with raw tensors behind it.

use std::cmp::Ordering;

use serde::Serialize;

use crate::api::wire::{Error, InferRequest, OutputRequest, Place, datatype_name};
use crate::engine::tensor::{DType, Element, Tensor, TensorView};

/// The answer of a model, to be encoded.
pub struct InferAnswer<'a> {
    /// Name of the endpoint.
    pub model_name: &'a str,
    /// Its version, as text.
    pub model_version: &'a str,
    /// All outputs of the model, in its order.
    pub outputs: Vec<(&'a str, &'a Tensor)>,
}

/// A body, and how many of its bytes are JSON where raw tensors follow.
#[derive(Debug)]
pub struct Encoded {
    /// JSON, then raw tensors.
    pub body: Vec<u8>,
    /// What `Inference-Header-Content-Length` says; `None` where all is JSON.
    pub json_bytes: Option<usize>,
}

/// Writes the outputs that `request` asks for.
///
/// JSON has no NaN and no infinities: they are written as `null`. A caller that must tell them apart asks for
/// `binary_data`.
///
/// # Errors
/// [`Error::Output`] where an output is asked for that the model does not have, or one is asked for twice.
pub fn encode(request: &InferRequest, answer: &InferAnswer<'_>) -> Result<Encoded, Error> {
    let chosen = chosen(request, answer)?;
    let bytes: usize = chosen.iter().map(|c| c.tensor.view().bytes.len()).sum();
    let mut json = Vec::with_capacity(256 + if chosen.iter().all(|c| c.binary) { bytes } else { bytes * 3 });
    let mut tail = Vec::new();
    let mut has_tail = false;
    json.extend_from_slice(b"{\"model_name\":");
    text(&mut json, answer.model_name);
    json.extend_from_slice(b",\"model_version\":");
    text(&mut json, answer.model_version);
    if let Some(id) = &request.id {
        json.extend_from_slice(b",\"id\":");
        text(&mut json, id);
    }
    json.extend_from_slice(b",\"outputs\":[");
    for (n, output) in chosen.iter().enumerate() {
        if n > 0 {
            json.push(b',');
        }
        json.extend_from_slice(b"{\"name\":");
        text(&mut json, output.name);
        match output.classification {
            0 => tensor(&mut json, &mut tail, output),
            k => write_classes(&mut json, &mut tail, output, k),
        }
        json.push(b'}');
        has_tail |= output.binary;
    }
    json.extend_from_slice(b"]}");
    let json_bytes = has_tail.then_some(json.len());
    json.append(&mut tail);
    Ok(Encoded { body: json, json_bytes })
}

/// An output that was asked for.
pub(crate) struct Choice {
    /// Which output of the model.
    pub(crate) index: usize,
    /// Whether it comes back raw.
    pub(crate) binary: bool,
    /// The `k` largest as `value:index` instead of the tensor; 0 is off.
    pub(crate) classification: usize,
    /// Where in shared memory it was written instead.
    pub(crate) place: Option<Place>,
}

/// The outputs that `request` asks for, of a model whose outputs have `names`.
///
/// # Errors
/// [`Error::Output`] where the model has no such output, or it is asked for twice: a short request could make an answer a
/// thousand times as long as the outputs are, and it is put together in memory.
pub(crate) fn choose(request: &InferRequest, names: &[&str]) -> Result<Vec<Choice>, Error> {
    if request.outputs.is_empty() {
        let all = (0..names.len()).map(|index| Choice {
            index,
            binary: request.binary_output,
            classification: 0,
            place: None,
        });
        return Ok(all.collect());
    }
    let mut asked = vec![false; names.len()];
    let mut find = |wanted: &OutputRequest| {
        let wrong = |reason: String| Error::Output { name: wanted.name.clone(), reason };
        let index = names.iter().position(|name| *name == wanted.name);
        let index = index.ok_or_else(|| wrong(format!("the model has no such output, only {names:?}")))?;
        if std::mem::replace(&mut asked[index], true) {
            return Err(wrong("asked for twice".to_owned()));
        }
        let binary = wanted.binary.unwrap_or(request.binary_output);
        Ok(Choice { index, binary, classification: wanted.classification, place: wanted.place.clone() })
    };
    request.outputs.iter().map(&mut find).collect()
}

struct Chosen<'a> {
    name: &'a str,
    tensor: &'a Tensor,
    binary: bool,
    classification: usize,
    // In shared memory, where the request wanted it.
    is_elsewhere: bool,
}

fn chosen<'a>(request: &InferRequest, answer: &InferAnswer<'a>) -> Result<Vec<Chosen<'a>>, Error> {
    let names: Vec<&str> = answer.outputs.iter().map(|(name, _)| *name).collect();
    let of = |choice: Choice| {
        let Choice { index, binary, classification, place } = choice;
        let (name, tensor) = answer.outputs[index];
        let is_elsewhere = place.is_some();
        Chosen { name, tensor, binary: binary && !is_elsewhere, classification, is_elsewhere }
    };
    Ok(choose(request, &names)?.into_iter().map(of).collect())
}

fn tensor(json: &mut Vec<u8>, tail: &mut Vec<u8>, output: &Chosen<'_>) {
    let view = output.tensor.view();
    head(json, datatype_name(view.dtype), view.shape);
    if output.is_elsewhere {
        // No parameters: Triton's C++ client looks for `binary_data_size` in whatever stands there.
        return;
    }
    if output.binary {
        binary_size(json, view.bytes.len());
        tail.extend_from_slice(view.bytes);
    } else {
        json.extend_from_slice(b",\"data\":");
        numbers(json, view);
    }
}

fn head(json: &mut Vec<u8>, datatype: &str, shape: &[usize]) {
    json.extend_from_slice(b",\"datatype\":");
    text(json, datatype);
    json.extend_from_slice(b",\"shape\":");
    items(json, shape.iter());
}

fn binary_size(json: &mut Vec<u8>, size: usize) {
    json.extend_from_slice(b",\"parameters\":{\"binary_data_size\":");
    item(json, &size);
    json.push(b'}');
}

fn numbers(json: &mut Vec<u8>, view: TensorView<'_>) {
    fn all<T: Element + Serialize>(json: &mut Vec<u8>, view: TensorView<'_>) {
        items(json, view.slice::<T>().iter());
    }
    match view.dtype {
        DType::F32 => all::<f32>(json, view),
        DType::F64 => all::<f64>(json, view),
        DType::F16 => items(json, view.slice::<half::f16>().iter().map(|x| x.to_f32())),
        DType::BF16 => items(json, view.slice::<half::bf16>().iter().map(|x| x.to_f32())),
        DType::I64 => all::<i64>(json, view),
        DType::I32 => all::<i32>(json, view),
        DType::I16 => all::<i16>(json, view),
        DType::I8 => all::<i8>(json, view),
        DType::U64 => all::<u64>(json, view),
        DType::U32 => all::<u32>(json, view),
        DType::U16 => all::<u16>(json, view),
        DType::U8 => all::<u8>(json, view),
        DType::Bool => items(json, view.slice::<u8>().iter().map(|&b| b != 0)),
    }
}

/// The classification extension: a BYTES tensor `[batch, k]` of `value:index`, largest first; its shape and its
/// elements. Values are printed as C's `%f` does, ties go to the lower index.
pub(crate) fn classes(tensor: &Tensor, k: usize) -> (Vec<usize>, Vec<String>) {
    let values = tensor.to_f64();
    let shape = tensor.shape();
    let rows = if shape.len() > 1 { shape[0] } else { 1 };
    let columns = values.len().checked_div(rows).unwrap_or(0);
    let k = k.min(columns);
    let mut texts = Vec::with_capacity(rows * k);
    for row in values.chunks(columns.max(1)) {
        let mut order: Vec<usize> = (0..row.len()).collect();
        let by_value =
            |&a: &usize, &b: &usize| row[b].partial_cmp(&row[a]).unwrap_or(Ordering::Equal).then(a.cmp(&b));
        order.sort_by(by_value);
        texts.extend(order.iter().take(k).map(|&i| format!("{:.6}:{i}", row[i])));
    }
    (if shape.len() > 1 { vec![rows, k] } else { vec![k] }, texts)
}

/// The raw form of a BYTES tensor: each element behind its length, 32 bits, little-endian.
pub(crate) fn raw_texts(texts: &[String]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(texts.iter().map(|t| 4 + t.len()).sum());
    for text in texts {
        // `{:.6}:{i}` is some twenty bytes long.
        bytes.extend_from_slice(&u32::try_from(text.len()).unwrap_or(0).to_le_bytes());
        bytes.extend_from_slice(text.as_bytes());
    }
    bytes
}

fn write_classes(json: &mut Vec<u8>, tail: &mut Vec<u8>, output: &Chosen<'_>, k: usize) {
    let (shape, texts) = classes(output.tensor, k);
    head(json, "BYTES", &shape);
    if output.binary {
        let raw = raw_texts(&texts);
        binary_size(json, raw.len());
        tail.extend_from_slice(&raw);
    } else {
        json.extend_from_slice(b",\"data\":");
        items(json, texts.iter());
    }
}

fn items<T: Serialize>(json: &mut Vec<u8>, values: impl Iterator<Item = T>) {
    json.push(b'[');
    for (n, value) in values.enumerate() {
        if n > 0 {
            json.push(b',');
        }
        item(json, &value);
    }
    json.push(b']');
}

fn text(json: &mut Vec<u8>, value: &str) {
    item(json, value);
}

/// `serde_json` writes the shortest text that reads back as the same float, and `null` for what is not finite.
fn item<T: Serialize + ?Sized>(json: &mut Vec<u8>, value: &T) {
    serde_json::to_writer(json, value)
        .expect("numbers and strings always serialize, and a Vec takes all bytes");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::wire::OutputRequest;

    fn check(request: &InferRequest, tensor: &Tensor) -> (String, Option<usize>, Vec<u8>) {
        let answer = InferAnswer { model_name: "m", model_version: "1", outputs: vec![("y", tensor)] };
        let encoded = encode(request, &answer).unwrap();
        let json = encoded.json_bytes.unwrap_or(encoded.body.len());
        let (head, tail) = encoded.body.split_at(json);
        (String::from_utf8(head.to_vec()).unwrap(), encoded.json_bytes, tail.to_vec())
    }

    #[test]
    fn json_carries_the_shortest_text_of_each_float_and_null_for_what_is_not_finite() {
        let tensor = Tensor::from_slice(&[1, 4], &[0.1f32, -2.0, f32::NAN, f32::INFINITY]);
        let request = InferRequest { id: Some("a\"b".to_owned()), ..InferRequest::default() };
        let (json, header, tail) = check(&request, &tensor);
        assert_eq!(
            json,
            r#"{"model_name":"m","model_version":"1","id":"a\"b","outputs":[{"name":"y","datatype":"FP32","shape":[1,4],"data":[0.1,-2.0,null,null]}]}"#
        );
        assert_eq!(header, None);
        assert!(tail.is_empty());
    }

    #[test]
    fn binary_outputs_follow_the_json() {
        let tensor = Tensor::from_slice(&[2], &[1f32, f32::NAN]);
        let request = InferRequest { binary_output: true, ..InferRequest::default() };
        let (json, header, tail) = check(&request, &tensor);
        assert!(json.ends_with(r#""shape":[2],"parameters":{"binary_data_size":8}}]}"#), "{json}");
        assert_eq!(header, Some(json.len()));
        assert_eq!(tail, [1f32.to_le_bytes(), f32::NAN.to_le_bytes()].concat());
    }

    #[test]
    fn an_output_overrides_the_request_and_unknown_ones_are_refused() {
        let tensor = Tensor::from_slice(&[1], &[7i64]);
        let output = |name: &str, binary| OutputRequest {
            name: name.to_owned(),
            binary,
            classification: 0,
            place: None,
        };
        let encode = |outputs: &[OutputRequest]| {
            let request =
                InferRequest { binary_output: true, outputs: outputs.to_vec(), ..InferRequest::default() };
            let outputs = vec![("y", &tensor), ("z", &tensor)];
            encode(&request, &InferAnswer { model_name: "m", model_version: "1", outputs })
        };
        let encoded = encode(&[output("z", Some(false)), output("y", None)]).unwrap();
        let (json, tail) = encoded.body.split_at(encoded.json_bytes.unwrap());
        let json = std::str::from_utf8(json).unwrap();
        assert!(json.contains(r#""data":[7]"#) && json.contains("binary_data_size"), "{json}");
        assert_eq!(tail.len(), 8);
        for (outputs, says) in [
            (&[output("x", None)][..], "no such output, only [\"y\", \"z\"]"),
            (
                &[output("y", None), output("z", None), output("y", Some(false))],
                "output `y`: asked for twice",
            ),
        ] {
            let error = encode(outputs).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn an_output_in_shared_memory_is_named_and_not_sent() {
        let tensor = Tensor::from_slice(&[2], &[1f32, 2.0]);
        let place = Place { region: "r".to_owned(), offset: 4, byte_size: 100 };
        for binary in [None, Some(true), Some(false)] {
            let output =
                OutputRequest { name: "y".to_owned(), binary, classification: 0, place: Some(place.clone()) };
            let request = InferRequest { outputs: vec![output], ..InferRequest::default() };
            let (json, header, tail) = check(&request, &tensor);
            assert!(json.ends_with(r#"{"name":"y","datatype":"FP32","shape":[2]}]}"#), "{json}");
            assert_eq!((header, tail.len()), (None, 0));
        }
    }

    #[test]
    fn classification_gives_the_largest_first() {
        let tensor = Tensor::from_slice(&[2, 3], &[0.1f32, 0.7, 0.2, 5.0, 4.0, 4.0]);
        let output = |binary| OutputRequest { name: "y".to_owned(), binary, classification: 2, place: None };
        let request = InferRequest { outputs: vec![output(None)], ..InferRequest::default() };
        let (json, _, _) = check(&request, &tensor);
        assert!(json.contains(r#""datatype":"BYTES","shape":[2,2],"data":["0.700000:1","0.200000:2","5.000000:0","4.000000:1"]"#), "{json}");
        let request = InferRequest { outputs: vec![output(Some(true))], ..InferRequest::default() };
        let (_, _, tail) = check(&request, &tensor);
        assert_eq!(tail.len(), 4 * 14);
        assert_eq!(tail[..14], [&10u32.to_le_bytes()[..], b"0.700000:1"].concat());
    }
}
