//! What is done with the body of an inference request that may be hostile: it is read, and answered with itself.

use std::collections::HashSet;

use octet::api::wire::request::{decode, framing};
use octet::api::wire::response::{Encoded, InferAnswer, encode};
use octet::api::wire::{Framing, InferRequest, Port};
use octet::engine::tensor::{DType, Element, Tensor};
use serde::de::IgnoredAny;
use serde_json::Value;

/// What an answer begins with, where the request has no id.
const HEAD: &[u8] = br#"{"model_name":"m","model_version":"1","outputs":["#;
/// Bytes of an answer beyond which it is not made: a request may ask for the same tensor under many names.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Numbers of a body that are looked at one by one.
const NUMBERS_MAX: usize = 4;
/// In a body with binary data, what stands in place of the end of the JSON part.
const SPLIT: u8 = 0x1e;

/// How far a body came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reached {
    /// It is no request.
    Nothing,
    /// It was read.
    Read,
    /// It was read and has tensors.
    Tensors,
}

/// The most that the exercises here may hold at a time for so many bytes: `0,` becomes 8 bytes, and as a text of the
/// classification some 60; answers besides, of the same tensors twice over, and once as they are asked for.
pub(crate) fn bytes_max(length: usize) -> i64 {
    256 * length as i64 + 8 * ANSWER_BYTES_MAX as i64
}

/// A body that is all JSON.
///
/// # Panics
/// Where tensors that were read do not come back the same, what was read is not JSON, or a number is not the nearest.
pub(crate) fn json(body: &[u8]) -> Reached {
    numbers(body);
    let Ok(request) = decode(Framing::Json, body, &[]) else { return Reached::Nothing };
    // Data are stepped over where they are given twice, or where `binary_data_size` stands beside them: nobody reads them
    // then. Escapes could hide such keys.
    let has = |text: &[u8]| body.windows(text.len()).filter(|window| *window == text).count();
    if has(b"\"data\"") <= request.inputs.len()
        && has(b"NaN") + has(b"Inf") + has(b"\\") + has(b"binary_") == 0
    {
        let read: Result<IgnoredAny, _> = serde_json::from_slice(body);
        assert!(read.is_ok(), "what was read is not JSON: {}", read.unwrap_err());
    }
    answered(&request)
}

/// JSON with raw tensors behind it, or one raw tensor. The first byte says which: `j` is JSON up to [`SPLIT`], which is
/// taken out; `h` begins with the text of the header, up to the first end of line; another is a raw tensor, for a port that
/// the byte chooses.
///
/// # Panics
/// As [`json`].
pub(crate) fn binary(input: &[u8]) -> Reached {
    let Some((&kind, rest)) = input.split_first() else { return Reached::Nothing };
    match kind {
        b'j' => {
            let at = rest.iter().position(|&b| b == SPLIT);
            let (head, tail) = at.map_or((rest, &[][..]), |at| (&rest[..at], &rest[at + 1..]));
            read_binary(Framing::Binary(head.len()), &[head, tail].concat())
        }
        b'h' => {
            let at = rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len());
            let Ok(header) = std::str::from_utf8(&rest[..at]) else { return Reached::Nothing };
            let Ok(framing) = framing(Some(header)) else { return Reached::Nothing };
            read_binary(framing, rest.get(at + 1..).unwrap_or_default())
        }
        kind => raw(kind, rest),
    }
}

fn read_binary(framing: Framing, body: &[u8]) -> Reached {
    let Ok(request) = decode(framing, body, &[]) else { return Reached::Nothing };
    let bytes: usize = request.inputs.iter().map(|(_, tensor)| tensor.view().bytes.len()).sum();
    // An element of JSON has a digit and a comma, but for the last one.
    assert!(bytes <= 8 * body.len(), "{bytes} bytes of tensors in a body of {}", body.len());
    answered(&request)
}

/// A raw tensor: its bytes are those of the body, and the shape is one that the port has.
fn raw(kind: u8, body: &[u8]) -> Reached {
    const DTYPES: [DType; 4] = [DType::F32, DType::U8, DType::F16, DType::I64];
    const SHAPES: [&[Option<usize>]; 8] = [
        &[],
        &[None],
        &[None, Some(3)],
        &[None, None, Some(2)],
        &[Some(1), Some(4)],
        &[None, Some(0)],
        &[None, Some(usize::MAX)],
        &[Some(1 << 31), Some(1 << 31), Some(1 << 31), None],
    ];
    let (dtype, shape) = (DTYPES[usize::from(kind) / 8 % 4], SHAPES[usize::from(kind) % 8]);
    let port = Port { name: "x", dtype, shape };
    let Ok(request) = decode(Framing::Raw, body, &[port]) else { return Reached::Nothing };
    let [(name, tensor)] = &request.inputs[..] else { panic!("a raw body is one input") };
    assert_eq!((name.as_str(), tensor.dtype(), tensor.view().bytes), ("x", dtype, body));
    assert_eq!(tensor.shape().len(), shape.len());
    let fits = tensor.shape().iter().zip(shape).all(|(got, want)| want.is_none_or(|want| *got == want));
    assert!(fits, "{:?} is not {shape:?}", tensor.shape());
    answered(&request)
}

/// Answers a request with its own tensors, and reads the answers as requests.
fn answered(request: &InferRequest) -> Reached {
    let bytes: usize = request.inputs.iter().map(|(_, tensor)| tensor.view().bytes.len()).sum();
    let outputs = || request.inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    // As it was asked for. An output of another name is answered with one of the inputs.
    let mut named: Vec<(&str, &Tensor)> = outputs();
    let asked: HashSet<&str> = request.outputs.iter().map(|output| output.name.as_str()).collect();
    let others = asked.iter().zip(request.inputs.iter().cycle());
    named.extend(others.map(|(name, (_, tensor))| (*name, tensor)));
    let twice = asked.len() < request.outputs.len();
    let refused = twice || request.inputs.is_empty() && !asked.is_empty();
    if bytes.saturating_mul(1 + request.outputs.len()) <= ANSWER_BYTES_MAX / 16 {
        let answer = InferAnswer { model_name: "m", model_version: "1", outputs: named };
        match encode(request, &answer) {
            Ok(Encoded { body, json_bytes }) => {
                assert!(!refused, "an answer to {:?}", request.outputs);
                let json = &body[..json_bytes.unwrap_or(body.len())];
                let json: Value = serde_json::from_slice(json).expect("an answer is JSON");
                assert_eq!(json.get("id").and_then(Value::as_str), request.id.as_deref());
            }
            Err(error) => assert!(refused, "{error}"),
        }
    }
    if bytes > ANSWER_BYTES_MAX / 16 {
        return Reached::Tensors;
    }
    // All of them, raw and as JSON.
    for binary_output in [true, false] {
        // JSON has no NaN and no infinities, and halves do not come in JSON.
        if !binary_output && !request.inputs.iter().all(|(_, tensor)| fits_json(tensor)) {
            continue;
        }
        let all = InferRequest { binary_output, ..InferRequest::default() };
        let answer = InferAnswer { model_name: "m", model_version: "1", outputs: outputs() };
        let Encoded { body, json_bytes } = encode(&all, &answer).expect("all outputs are those there are");
        let rest = body.strip_prefix(HEAD).expect("an answer begins with the model");
        let again = [br#"{"inputs":["#, rest].concat();
        let framing = match json_bytes {
            Some(length) => Framing::Binary(length + again.len() - body.len()),
            None => Framing::Json,
        };
        let again = decode(framing, &again, &[]).unwrap_or_else(|e| panic!("an answer cannot be read: {e}"));
        assert!(again.inputs == request.inputs, "{:?} came back as {:?}", request.inputs, again.inputs);
    }
    if request.inputs.is_empty() { Reached::Read } else { Reached::Tensors }
}

fn fits_json(tensor: &Tensor) -> bool {
    match tensor.dtype() {
        DType::F16 | DType::BF16 => false,
        DType::F32 => tensor.slice::<f32>().iter().all(|x| x.is_finite()),
        DType::F64 => tensor.slice::<f64>().iter().all(|x| x.is_finite()),
        _ => true,
    }
}

/// Numbers in the text are read as the standard library reads them, by every type.
fn numbers(body: &[u8]) {
    let of_number = |b: &u8| b.is_ascii_digit() || b"+-.eE".contains(b);
    let tokens = body.split(|b| !of_number(b)).filter(|token| !token.is_empty() && token.len() < 100);
    for token in tokens.take(NUMBERS_MAX) {
        let token = std::str::from_utf8(token).expect("digits are ASCII");
        number::<f32>("FP32", token, |x| x.is_finite());
        number::<f64>("FP64", token, |x| x.is_finite());
        number::<i64>("INT64", token, |_| true);
        number::<u8>("UINT8", token, |_| true);
    }
}

fn number<T: Element + std::str::FromStr>(datatype: &str, token: &str, fits: fn(&T) -> bool) {
    let body =
        format!(r#"{{"inputs":[{{"name":"x","shape":[1],"datatype":"{datatype}","data":[{token}]}}]}}"#);
    let grammar = serde_json::from_str::<IgnoredAny>(token).is_ok();
    let want = token.parse::<T>().ok().filter(|x| grammar && fits(x));
    let got =
        decode(Framing::Json, body.as_bytes(), &[]).ok().map(|request| request.inputs[0].1.slice::<T>()[0]);
    let bytes = |x: Option<T>| x.map(|x| bytemuck::bytes_of(&x).to_vec());
    assert_eq!(bytes(got), bytes(want), "`{token}` as {datatype}");
}
