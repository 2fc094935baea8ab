//! Bytes of a request to tensors: JSON, JSON with raw tensors behind it, or one raw tensor.

use serde_json::Value;

use crate::api::wire::scan::{self, Scanner};
use crate::api::wire::{
    Error, Framing, InferRequest, OutputRequest, Place, Port, SharedInput, datatype, datatype_name,
};
use crate::engine::tensor::{DType, Incoming, Tensor, element_count};

/// Most dimensions of a tensor, and most inputs or outputs of a request.
pub(crate) const RANK_MAX: usize = 16;
pub(crate) const TENSORS_MAX: usize = 1024;

/// Why a request of a sequence is refused: whoever sends one believes that its state is kept.
pub(crate) const NO_SEQUENCES: &str =
    "`sequence_id`: each request stands alone here, no state is kept between two";

/// Reads the header `Inference-Header-Content-Length`.
///
/// # Errors
/// [`Error::Framing`] where it is not a number.
pub fn framing(header: Option<&str>) -> Result<Framing, Error> {
    let Some(text) = header else { return Ok(Framing::Json) };
    match text.trim().parse::<usize>() {
        Ok(0) => Ok(Framing::Raw),
        Ok(n) => Ok(Framing::Binary(n)),
        Err(_) => Err(Error::Framing(format!(
            "Inference-Header-Content-Length must be a number of bytes, got `{text}`"
        ))),
    }
}

/// Reads a request. `inputs` are those of the model: a raw body takes its type and shape from them.
///
/// # Errors
/// [`Error`], which names the field or tensor at fault.
pub fn decode(framing: Framing, body: &[u8], inputs: &[Port<'_>]) -> Result<InferRequest, Error> {
    match framing {
        Framing::Raw => raw(body, inputs),
        Framing::Json => json(body, &[]),
        Framing::Binary(len) if len > body.len() => Err(Error::Framing(format!(
            "Inference-Header-Content-Length is {len}, but the body has only {} bytes",
            body.len()
        ))),
        Framing::Binary(len) => json(&body[..len], &body[len..]),
    }
}

/// As [`decode`], of a body that was read for it: one raw tensor behind the JSON stays where it is.
///
/// # Errors
/// [`Error`], which names the field or tensor at fault.
pub fn decode_in_place(framing: Framing, body: Incoming, inputs: &[Port<'_>]) -> Result<InferRequest, Error> {
    let Framing::Binary(len) = framing else { return decode(framing, body.bytes(), inputs) };
    let Some((text, tail)) = body.bytes().split_at_checked(len) else {
        return decode(framing, body.bytes(), inputs);
    };
    let (mut request, texts) = head(text)?;
    let Some((name, Described { dtype, shape, .. })) = only_raw(&texts, tail) else {
        return filled(request, texts, text, tail);
    };
    let tensor = body.into_tensor(dtype, &shape, len).expect("as many bytes as the shape takes");
    request.inputs.push((name, tensor));
    Ok(request)
}

/// The only input, where all that follows the text is its data; `None` also for one at fault. (A BOOL must be looked at
/// byte by byte.)
fn only_raw(texts: &[InputText<'_>], tail: &[u8]) -> Option<(String, Described)> {
    let [input] = texts else { return None };
    let InputText { name: Some(name), shape: Some(dims), datatype: Some(datatype), .. } = input else {
        return None;
    };
    let Parameters { binary_bytes, place: None } = &input.parameters else { return None };
    let described = described(name, dims, datatype).ok()?;
    let whole = *binary_bytes == Some(tail.len()) && described.bytes == tail.len();
    (whole && described.dtype != DType::Bool).then(|| (name.clone(), described))
}

/// A body that is the only input, one sample of it: the free dimensions are 1, except one that the size tells.
fn raw(body: &[u8], inputs: &[Port<'_>]) -> Result<InferRequest, Error> {
    let [port] = inputs else {
        let count = inputs.len();
        return Err(Error::Framing(format!(
            "a raw request (Inference-Header-Content-Length: 0) needs a model with one input, this has {count}"
        )));
    };
    let wrong = |reason: String| Error::Input { name: port.name.to_owned(), reason };
    let mut shape: Vec<usize> = port.shape.iter().map(|d| d.unwrap_or(1)).collect();
    let one = element_count(&shape).and_then(|n| n.checked_mul(port.dtype.size())).unwrap_or(0);
    // As in Triton the body is one sample where that fits; else the last free dimension, which may be the batch,
    // takes the rest.
    if one > 0
        && body.len().is_multiple_of(one)
        && let Some(free) = port.shape.iter().rposition(Option::is_none)
    {
        shape[free] = body.len() / one;
    }
    let tensor = Tensor::from_bytes(port.dtype, &shape, body)
        .ok_or_else(|| wrong(format!("a raw body of {} bytes, shape {shape:?} takes {one}", body.len())))?;
    let inputs = vec![(port.name.to_owned(), tensor)];
    Ok(InferRequest { inputs, binary_output: true, ..InferRequest::default() })
}

/// One tensor as the JSON part describes it.
#[derive(Default)]
struct InputText<'a> {
    name: Option<String>,
    shape: Option<Vec<i64>>,
    datatype: Option<String>,
    parameters: Parameters,
    data: Option<(usize, &'a [u8])>,
}

/// Where the data of a tensor are, if not in the text.
#[derive(Default)]
struct Parameters {
    /// So many bytes behind the text.
    binary_bytes: Option<usize>,
    /// In shared memory.
    place: Option<Place>,
}

fn json(text: &[u8], tail: &[u8]) -> Result<InferRequest, Error> {
    let (request, texts) = head(text)?;
    filled(request, texts, text, tail)
}

/// A request with its inputs, from the text and from what follows it.
fn filled(
    mut request: InferRequest,
    texts: Vec<InputText<'_>>,
    text: &[u8],
    mut tail: &[u8],
) -> Result<InferRequest, Error> {
    for input in texts {
        take_input(&mut request, input, text, &mut tail)?;
    }
    if !tail.is_empty() {
        // The words of Triton's http_server.cc; people search for them.
        return Err(Error::Framing(format!(
            "unexpected additional input data: {} bytes too many",
            tail.len()
        )));
    }
    Ok(request)
}

/// The JSON part: a request without inputs, and what it says of them.
fn head(text: &[u8]) -> Result<(InferRequest, Vec<InputText<'_>>), Error> {
    let mut request = InferRequest::default();
    let mut texts = None;
    let mut scanner = Scanner::new(text);
    scanner.object(|s, key| {
        match key {
            "id" => request.id = id(s.value()?)?,
            "parameters" => parameters(s, &mut request)?,
            "inputs" => texts = Some(inputs(s)?),
            // As for the other fields that may be left out, `null` is none.
            "outputs" if s.peek() == Some(b'n') => drop(s.skip()?),
            "outputs" => request.outputs = outputs(s)?,
            _ => drop(s.skip()?),
        }
        Ok(())
    })?;
    scanner.end()?;
    let texts = texts.ok_or_else(|| Error::Field("the request has no `inputs`".to_owned()))?;
    Ok((request, texts))
}

fn id(value: Value) -> Result<Option<String>, Error> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text).filter(|text| !text.is_empty())),
        _ => Err(Error::Field("`id` must be a string".to_owned())),
    }
}

fn parameters(s: &mut Scanner<'_>, request: &mut InferRequest) -> Result<(), Error> {
    let value = parameters_value(s)?;
    if let Some(binary) = value.get("binary_data_output") {
        request.binary_output = binary
            .as_bool()
            .ok_or_else(|| Error::Field("`binary_data_output` must be a boolean".to_owned()))?;
    }
    if value.get("sequence_id").is_some_and(|id| *id != 0 && *id != "" && !id.is_null()) {
        return Err(Error::Field(NO_SEQUENCES.to_owned()));
    }
    if let Some(precision) = value.get("precision") {
        let text =
            precision.as_str().ok_or_else(|| Error::Field("`precision` must be a string".to_owned()))?;
        request.precision = Some(text.to_owned());
    }
    if let Some(timeout) = value.get("timeout") {
        let us = timeout.as_u64().or_else(|| timeout.as_str().and_then(|t| t.parse().ok()));
        let us =
            us.ok_or_else(|| Error::Field("`timeout` must be microseconds, a whole number".to_owned()))?;
        request.timeout_us = Some(us).filter(|&us| us > 0);
    }
    if let Some(priority) = value.get("priority") {
        request.priority = priority
            .as_u64()
            .ok_or_else(|| Error::Field("`priority` must be a whole number, 1 goes first".to_owned()))?;
    }
    Ok(())
}

/// The value of a `parameters`: an object, or `null` for none.
fn parameters_value(s: &mut Scanner<'_>) -> Result<Value, Error> {
    match s.peek() {
        Some(b'{' | b'n') => s.value(),
        _ => Err(s.error("it must be an object")),
    }
}

fn inputs<'a>(s: &mut Scanner<'a>) -> Result<Vec<InputText<'a>>, Error> {
    let mut all = Vec::new();
    s.array(|s| {
        if all.len() == TENSORS_MAX {
            return Err(s.error(format!("more than {TENSORS_MAX} inputs")));
        }
        let mut input = InputText::default();
        s.object(|s, key| {
            match key {
                "name" => input.name = Some(s.string()?.into_owned()),
                "datatype" => input.datatype = Some(s.string()?.into_owned()),
                "shape" => input.shape = Some(shape(s)?),
                // kserve's SDK writes `null` where a raw tensor is empty.
                "data" if s.peek() == Some(b'n') => drop(s.skip()?),
                "data" => input.data = Some(s.array_span()?),
                "parameters" => input.parameters = input_parameters(&parameters_value(s)?)?,
                _ => drop(s.skip()?),
            }
            Ok(())
        })?;
        all.push(input);
        Ok(())
    })?;
    Ok(all)
}

fn shape(s: &mut Scanner<'_>) -> Result<Vec<i64>, Error> {
    let mut dims = Vec::new();
    s.array(|s| {
        if dims.len() == RANK_MAX {
            return Err(s.error(format!("more than {RANK_MAX} dimensions")));
        }
        dims.push(s.integer()?);
        Ok(())
    })?;
    Ok(dims)
}

fn input_parameters(parameters: &Value) -> Result<Parameters, Error> {
    let binary_bytes = byte_count(parameters, "binary_data_size").map_err(Error::Field)?;
    let place = place(parameters).map_err(Error::Field)?;
    if binary_bytes.is_some() && place.is_some() {
        let reason = "`binary_data_size` beside `shared_memory_region`: only one of them";
        return Err(Error::Field(reason.to_owned()));
    }
    Ok(Parameters { binary_bytes, place })
}

/// The place in shared memory that parameters name, where they do.
fn place(parameters: &Value) -> Result<Option<Place>, String> {
    let Some(region) = parameters.get("shared_memory_region") else { return Ok(None) };
    let region = region.as_str().ok_or("`shared_memory_region` must be a string")?.to_owned();
    let byte_size = byte_count(parameters, "shared_memory_byte_size")?;
    let byte_size = byte_size.ok_or("no `shared_memory_byte_size` beside `shared_memory_region`")?;
    let offset = byte_count(parameters, "shared_memory_offset")?.unwrap_or(0) as u64;
    Ok(Some(Place { region, offset, byte_size }))
}

fn byte_count(parameters: &Value, name: &str) -> Result<Option<usize>, String> {
    let Some(count) = parameters.get(name) else { return Ok(None) };
    let count = count.as_u64().and_then(|n| usize::try_from(n).ok());
    count.map(Some).ok_or_else(|| format!("`{name}` must be a number of bytes"))
}

fn outputs(s: &mut Scanner<'_>) -> Result<Vec<OutputRequest>, Error> {
    let mut all: Vec<OutputRequest> = Vec::new();
    s.array(|s| {
        if all.len() == TENSORS_MAX {
            return Err(s.error(format!("more than {TENSORS_MAX} outputs")));
        }
        let mut name = None;
        let mut parameters = Value::Null;
        s.object(|s, key| {
            match key {
                "name" => name = Some(s.string()?.into_owned()),
                "parameters" => parameters = parameters_value(s)?,
                _ => drop(s.skip()?),
            }
            Ok(())
        })?;
        let name = name.ok_or_else(|| s.error("an output without `name`"))?;
        let wrong = |reason: &str| Error::Output { name: name.clone(), reason: reason.to_owned() };
        let binary = match parameters.get("binary_data") {
            None => None,
            Some(flag) => Some(flag.as_bool().ok_or_else(|| wrong("`binary_data` must be a boolean"))?),
        };
        let classification = match parameters.get("classification") {
            None => 0,
            Some(k) => k
                .as_u64()
                .and_then(|k| usize::try_from(k).ok())
                .ok_or_else(|| wrong("`classification` must be a whole number"))?,
        };
        let place = place(&parameters).map_err(|reason| wrong(&reason))?;
        all.push(OutputRequest::new(name, binary, classification, place)?);
        Ok(())
    })?;
    Ok(all)
}

/// What an input says of itself.
pub(crate) struct Described {
    /// What one element is.
    pub(crate) dtype: DType,
    /// Length of each dimension.
    pub(crate) shape: Vec<usize>,
    /// Elements.
    pub(crate) count: usize,
    /// Bytes of all elements.
    pub(crate) bytes: usize,
}

impl InferRequest {
    /// Takes an input whose data came along.
    ///
    /// # Errors
    /// [`Error::Input`] where there is one of this name.
    pub(crate) fn push(&mut self, name: String, tensor: Tensor) -> Result<(), Error> {
        let name = self.new_name(name)?;
        self.inputs.push((name, tensor));
        Ok(())
    }

    /// Takes an input that lies in shared memory.
    ///
    /// # Errors
    /// [`Error::Input`] where there is one of this name, or the place has another size than the shape.
    pub(crate) fn push_shared(
        &mut self,
        name: String,
        described: Described,
        place: Place,
    ) -> Result<(), Error> {
        let name = self.new_name(name)?;
        let Described { dtype, shape, bytes, .. } = described;
        if place.byte_size != bytes {
            let size = place.byte_size;
            let type_name = datatype_name(dtype);
            let reason =
                format!("{size} bytes of shared memory, but {type_name} of shape {shape:?} takes {bytes}");
            return Err(Error::Input { name, reason });
        }
        self.shared_inputs.push(SharedInput { name, dtype, shape, place });
        Ok(())
    }

    fn new_name(&self, name: String) -> Result<String, Error> {
        let mut names = self.inputs.iter().map(|(n, _)| n).chain(self.shared_inputs.iter().map(|i| &i.name));
        if names.any(|n| *n == name) {
            return Err(Error::Input { name, reason: "given twice".to_owned() });
        }
        Ok(name)
    }
}

/// Reads the shape and the datatype of an input.
///
/// # Errors
/// [`Error::Input`] where one of them is none.
pub(crate) fn described(name: &str, dims: &[i64], datatype_text: &str) -> Result<Described, Error> {
    let wrong = |reason: String| Error::Input { name: name.to_owned(), reason };
    let shape: Result<Vec<usize>, _> = dims.iter().map(|&d| usize::try_from(d)).collect();
    let shape = shape.map_err(|_| wrong(format!("shape {dims:?} has a dimension below 0")))?;
    if datatype_text == "BYTES" {
        return Err(wrong("datatype BYTES (strings) is not supported: models here take numbers".to_owned()));
    }
    let dtype =
        datatype(datatype_text).ok_or_else(|| wrong(format!("`{datatype_text}` is not a datatype")))?;
    let (count, bytes) = element_count(&shape)
        .and_then(|n| Some((n, n.checked_mul(dtype.size())?)))
        .ok_or_else(|| wrong(format!("the product of shape {shape:?} is too large")))?;
    Ok(Described { dtype, shape, count, bytes })
}

/// Any bytes are numbers, but not all are truth values.
///
/// # Errors
/// Which ones there are.
pub(crate) fn check_bytes(dtype: DType, bytes: &[u8]) -> Result<(), String> {
    if dtype == DType::Bool && bytes.iter().any(|&b| b > 1) {
        return Err("a BOOL byte is neither 0 nor 1".to_owned());
    }
    Ok(())
}

/// A tensor of raw bytes, little-endian, as many as its shape takes.
///
/// # Errors
/// Why the bytes are not such a tensor.
pub(crate) fn raw_tensor(dtype: DType, shape: &[usize], bytes: &[u8]) -> Result<Tensor, String> {
    check_bytes(dtype, bytes)?;
    let size = bytes.len();
    Tensor::from_bytes(dtype, shape, bytes).ok_or_else(|| format!("{size} bytes do not fill shape {shape:?}"))
}

fn take_input(
    request: &mut InferRequest,
    input: InputText<'_>,
    text: &[u8],
    tail: &mut &[u8],
) -> Result<(), Error> {
    let name = input.name.ok_or_else(|| Error::Field("an input without `name`".to_owned()))?;
    let wrong = |reason: String| Error::Input { name: name.clone(), reason };
    let dims = input.shape.ok_or_else(|| wrong("no `shape`".to_owned()))?;
    let type_name = input.datatype.ok_or_else(|| wrong("no `datatype`".to_owned()))?;
    let described = described(&name, &dims, &type_name)?;
    let Parameters { binary_bytes, place } = input.parameters;
    if let Some(place) = place {
        if input.data.is_some() {
            return Err(wrong("`data` beside `shared_memory_region`: only one of them".to_owned()));
        }
        return request.push_shared(name, described, place);
    }
    let Described { dtype, shape, count, bytes } = described;
    let tensor = match (binary_bytes, input.data) {
        (Some(size), _) => binary_tensor(dtype, &shape, size, bytes, tail).map_err(wrong)?,
        (None, Some((start, data))) => {
            json_tensor(dtype, &shape, count, data).map_err(|e| within(e, &name, text, start))?
        }
        (None, None) if count == 0 => Tensor::zeros(dtype, &shape),
        (None, None) => return Err(wrong("neither `data` nor `parameters.binary_data_size`".to_owned())),
    };
    request.push(name, tensor)
}

fn binary_tensor(
    dtype: DType,
    shape: &[usize],
    size: usize,
    needed: usize,
    tail: &mut &[u8],
) -> Result<Tensor, String> {
    if size != needed {
        let name = datatype_name(dtype);
        return Err(format!(
            "binary_data_size is {size}, but {name} of shape {shape:?} takes {needed} bytes"
        ));
    }
    if tail.len() < size {
        return Err(format!("the body ends {} bytes before its {size} bytes of data do", size - tail.len()));
    }
    let (bytes, rest) = tail.split_at(size);
    *tail = rest;
    raw_tensor(dtype, shape, bytes)
}

fn json_tensor(dtype: DType, shape: &[usize], count: usize, data: &[u8]) -> Result<Tensor, Error> {
    match dtype {
        DType::F32 => scan::tensor::<f32>(data, shape, count),
        DType::F64 => scan::tensor::<f64>(data, shape, count),
        DType::I64 => scan::tensor::<i64>(data, shape, count),
        DType::I32 => scan::tensor::<i32>(data, shape, count),
        DType::I16 => scan::tensor::<i16>(data, shape, count),
        DType::I8 => scan::tensor::<i8>(data, shape, count),
        DType::U64 => scan::tensor::<u64>(data, shape, count),
        DType::U32 => scan::tensor::<u32>(data, shape, count),
        DType::U16 => scan::tensor::<u16>(data, shape, count),
        DType::U8 => scan::tensor::<u8>(data, shape, count),
        DType::Bool => scan::bool_tensor(data, shape, count).map(|t| t.retyped(DType::Bool)),
        DType::F16 | DType::BF16 => Err(Error::Field(format!(
            // Triton's sentence.
            "receiving {} data via JSON is not supported. Please use the binary data format",
            datatype_name(dtype)
        ))),
    }
}

/// Puts the name of the tensor, and the place in the whole text, into an error of its `data`.
fn within(error: Error, name: &str, text: &[u8], start: usize) -> Error {
    let reason = match error {
        Error::Json { line: 0, reason, .. } | Error::Field(reason) => reason,
        Error::Json { line, column, reason } => {
            let before = &text[..start];
            let lines = before.iter().filter(|&&b| b == b'\n').count();
            let offset = before.iter().rev().take_while(|&&b| b != b'\n').count();
            let column = if line == 1 { column + offset } else { column };
            format!("malformed data at line {} column {column}: {reason}", line + lines)
        }
        other => other.to_string(),
    };
    Error::Input { name: name.to_owned(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<InferRequest, String> {
        decode(Framing::Json, text.as_bytes(), &[]).map_err(|e| e.to_string())
    }

    fn input(rest: &str) -> Result<InferRequest, String> {
        read(&format!(r#"{{"inputs":[{{"name":"x",{rest}}}]}}"#))
    }

    #[test]
    fn a_json_request_reads_whatever_the_order_of_its_keys() {
        let request = read(
            r#"{"id":"42","model_name":"m","inputs":[{"data":[[1,2],[3,4]],"datatype":"FP32","shape":[2,2],"name":"x"}],
                "outputs":[{"name":"y","parameters":{"binary_data":true,"classification":3}}],
                "parameters":{"binary_data_output":true,"priority":1,"timeout":5000,"precision":"fp32"}}"#,
        )
        .unwrap();
        assert_eq!(request.id.as_deref(), Some("42"));
        assert_eq!(request.inputs[0].0, "x");
        assert_eq!(request.inputs[0].1, Tensor::from_slice(&[2, 2], &[1f32, 2.0, 3.0, 4.0]));
        assert_eq!(request.outputs[0].binary, Some(true));
        assert_eq!(request.outputs[0].classification, 3);
        assert_eq!(request.timeout_us, Some(5000));
        assert!(request.binary_output);
        assert_eq!(read(r#"{"id":"","inputs":[]}"#).unwrap().id, None);
    }

    #[test]
    fn null_is_as_if_it_were_not_there_and_an_id_is_a_text() {
        let request = read(r#"{"id":null,"parameters":null,"outputs":null,"inputs":[]}"#).unwrap();
        assert!(request.id.is_none() && request.outputs.is_empty());
        for id in ["7", "true", "[\"a\"]", "{}"] {
            let error = read(&format!(r#"{{"id":{id},"inputs":[]}}"#)).unwrap_err();
            assert!(error.contains("`id` must be a string"), "{id}: {error}");
        }
        assert!(read(r#"{"outputs":nil,"inputs":[]}"#).is_err());
    }

    #[test]
    fn every_datatype_but_halves_and_strings_reads_from_json() {
        for name in ["FP32", "FP64", "INT64", "INT32", "INT16", "INT8", "UINT64", "UINT32", "UINT16", "UINT8"]
        {
            let request = input(&format!(r#""shape":[2],"datatype":"{name}","data":[1,0]"#)).unwrap();
            assert_eq!(request.inputs[0].1.to_f64(), [1.0, 0.0], "{name}");
        }
        let bools = input(r#""shape":[3],"datatype":"BOOL","data":[true,false,1]"#).unwrap();
        assert_eq!(bools.inputs[0].1.dtype(), DType::Bool);
        assert_eq!(bools.inputs[0].1.to_f64(), [1.0, 0.0, 1.0]);
    }

    #[test]
    fn a_faulty_input_is_told_by_name() {
        for (rest, want) in [
            (r#""shape":[1,4],"datatype":"FP32","data":[1,2,3]"#, "3 values, but shape [1, 4] holds 4"),
            (r#""shape":[1],"datatype":"FP32","data":[1,2,3]"#, "more values than the shape holds (1)"),
            (r#""shape":[4294967296,4294967296],"datatype":"FP32","data":[1]"#, "is too large"),
            (r#""shape":[2305843009213693952,8],"datatype":"INT8","data":[1]"#, "is too large"),
            (r#""shape":[1],"datatype":"FP16","data":[1]"#, "FP16 data via JSON is not supported"),
            (r#""shape":[1],"datatype":"BYTES","data":["a"]"#, "BYTES (strings) is not supported"),
            (r#""shape":[1],"datatype":"F32","data":[1]"#, "`F32` is not a datatype"),
            (r#""shape":[1],"datatype":"FP32""#, "neither `data` nor"),
            (r#""shape":[1],"datatype":"FP32","data":["a"]"#, "expected a number, found `\"`"),
            (r#""shape":[-1],"datatype":"FP32","data":[1]"#, "[-1] has a dimension below 0"),
            (r#""datatype":"FP32","data":[1]"#, "no `shape`"),
            (r#""shape":[1],"data":[1]"#, "no `datatype`"),
        ] {
            let error = input(rest).expect_err(rest);
            assert!(error.starts_with("input `x`: ") && error.contains(want), "{rest}: {error}");
        }
        assert!(read("{}").unwrap_err().contains("no `inputs`"));
        assert!(read(r#"{"inputs":[{"shape":[1]}]}"#).unwrap_err().contains("without `name`"));
        let twice = r#"{"name":"x","shape":[1],"datatype":"FP32","data":[1]}"#;
        assert!(read(&format!(r#"{{"inputs":[{twice},{twice}]}}"#)).unwrap_err().contains("given twice"));
    }

    #[test]
    fn a_value_of_another_kind_is_told_with_its_field() {
        for (body, want) in [
            (
                r#"{"inputs":[{"name":"x","datatype":7}]}"#,
                "`inputs`: `datatype`: expected a string, found `7`",
            ),
            (r#"{"inputs":[{"name":"x","shape":"1,3"}]}"#, "`inputs`: `shape`: expected an array"),
            (r#"{"inputs":{}}"#, "`inputs`: expected an array, found `{`"),
            (r#"{"outputs":[{"name":null}],"inputs":[]}"#, "`outputs`: `name`: expected a string"),
        ] {
            let error = read(body).unwrap_err();
            assert!(error.contains(want), "{error}");
        }
    }

    #[test]
    fn a_sequence_is_refused_since_no_state_is_kept() {
        let body = |id: &str| {
            format!(r#"{{"parameters":{{"sequence_id":{id},"sequence_start":true}},"inputs":[]}}"#)
        };
        for id in ["0", "\"\"", "null"] {
            assert!(read(&body(id)).is_ok(), "{id}");
        }
        for id in ["7", "\"a\"", "[]"] {
            assert!(read(&body(id)).unwrap_err().contains("`sequence_id`"), "{id}");
        }
    }

    #[test]
    fn parameters_are_objects() {
        let input = r#"{"name":"x","shape":[1],"datatype":"FP32","data":[1]}"#;
        let with = |text: &str| text.replacen('}', r#","parameters":[]}"#, 1);
        for body in [
            format!(r#"{{"parameters":[],"inputs":[{input}]}}"#),
            format!(r#"{{"inputs":[{}]}}"#, with(input)),
            format!(r#"{{"inputs":[{input}],"outputs":[{}]}}"#, with(r#"{"name":"y"}"#)),
        ] {
            assert!(read(&body).unwrap_err().contains("`parameters`: it must be an object"), "{body}");
            assert!(read(&body.replace(r#""parameters":[]"#, r#""parameters":null"#)).is_ok(), "{body}");
        }
    }

    #[test]
    fn a_fault_in_the_data_is_told_with_its_place_in_the_body() {
        let error =
            read("{\"inputs\":[{\"name\":\"x\",\"shape\":[2],\"datatype\":\"FP32\",\n\"data\":[1,y]}]}");
        assert!(error.unwrap_err().contains("line 2 column 11"));
    }

    fn binary(json: &str, tail: &[u8]) -> Result<InferRequest, String> {
        let body = [json.as_bytes(), tail].concat();
        decode(Framing::Binary(json.len()), &body, &[]).map_err(|e| e.to_string())
    }

    #[test]
    fn raw_tensors_follow_the_json_in_input_order() {
        let json = r#"{"inputs":[{"name":"a","shape":[1],"datatype":"FP32","parameters":{"binary_data_size":4}},
            {"name":"b","shape":[2],"datatype":"INT32","data":[7,8]},
            {"name":"c","shape":[2],"datatype":"FP16","parameters":{"binary_data_size":4}},
            {"name":"d","shape":[0,4],"datatype":"FP32","parameters":{"binary_data_size":0}}]}"#;
        let tail = [0, 0, 128, 63, 0, 60, 0, 64];
        let request = binary(json, &tail).unwrap();
        assert_eq!(request.inputs[0].1.to_f64(), [1.0]);
        assert_eq!(request.inputs[1].1.to_f64(), [7.0, 8.0]);
        assert_eq!(request.inputs[2].1.to_f64(), [1.0, 2.0]);
        assert_eq!(request.inputs[3].1.shape(), [0, 4]);
        assert!(binary(json, &tail[..7]).unwrap_err().contains("ends 1 bytes before"));
        assert!(
            binary(json, &[&tail[..], &[0]].concat())
                .unwrap_err()
                .contains("unexpected additional input data")
        );
    }

    #[test]
    fn tensors_in_shared_memory_are_named_and_not_sent() {
        let place = r#""parameters":{"shared_memory_region":"r","shared_memory_byte_size":8,"shared_memory_offset":16}"#;
        let input = format!(r#"{{"name":"x","shape":[2],"datatype":"FP32",{place}}}"#);
        let body = |inputs: &str, outputs: &str| format!(r#"{{"inputs":[{inputs}],"outputs":[{outputs}]}}"#);
        let output = format!(r#"{{"name":"y",{place}}}"#);
        let request = read(&body(&input, &output)).unwrap();
        let want = Place { region: "r".to_owned(), offset: 16, byte_size: 8 };
        let SharedInput { name, dtype, shape, place: found } = &request.shared_inputs[0];
        assert_eq!((name.as_str(), *dtype, &shape[..], found), ("x", DType::F32, &[2][..], &want));
        assert!(request.inputs.is_empty());
        assert_eq!(request.outputs[0].place, Some(want));
        let without = input.replace(r#","shared_memory_byte_size":8"#, "");
        let classes = output.replace(r#""parameters":{"#, r#""parameters":{"classification":2,"#);
        for (inputs, outputs, says) in [
            (format!("{input},{input}"), "", "input `x`: given twice"),
            (input.replace("[2]", "[3]"), "", "8 bytes of shared memory, but FP32 of shape [3] takes 12"),
            (input.replace(r#"name":"x""#, r#"name":"x","data":[1,2]"#), "", "`data` beside"),
            (input.replace(r#"s":{"#, r#"s":{"binary_data_size":8,"#), "", "`binary_data_size` beside"),
            (input.replace(r#""r""#, "7"), "", "`shared_memory_region` must be a string"),
            (input.replace("16", "-1"), "", "`shared_memory_offset` must be a number of bytes"),
            (without, "", "no `shared_memory_byte_size`"),
            (input.clone(), &classes, "output `y`: a classification comes with the answer"),
        ] {
            let error = read(&body(&inputs, outputs)).unwrap_err();
            assert!(error.contains(says), "{error} is not {says}");
        }
        // Beside one that is sent.
        let sent = r#"{"name":"z","shape":[1],"datatype":"UINT8","parameters":{"binary_data_size":1}}"#;
        let request = binary(&body(&format!("{input},{sent}"), ""), &[7]).unwrap();
        assert_eq!((request.inputs.len(), request.shared_inputs.len()), (1, 1));
    }

    #[test]
    fn a_body_that_was_read_for_its_tensor_gives_the_same_request() {
        let in_place = |json: &str, tail: &[u8], room: usize| {
            let mut incoming = Incoming::with_room(room, json.len());
            [json.as_bytes(), tail].concat().chunks(7).for_each(|part| incoming.extend(part));
            let at = incoming.bytes().as_ptr().wrapping_add(json.len());
            let request = decode_in_place(Framing::Binary(json.len()), incoming, &[]);
            (request.map_err(|e| e.to_string()), at)
        };
        let one = r#"{"id":"7","inputs":[{"name":"x","shape":[1,3],"datatype":"FP32","parameters":{"binary_data_size":12}}]}"#;
        let two = &one.replace(
            "}]",
            r#"},{"name":"y","shape":[1],"datatype":"UINT8","parameters":{"binary_data_size":1}}]"#,
        );
        let wrong = &one.replace("[1,3]", "[1,4]");
        let text = &one
            .replace("[1,3]", "[2,3]")
            .replace(r#""parameters":{"binary_data_size":12}"#, r#""data":[1,2,3,4,5,6]"#);
        let flags = &one.replace("FP32", "BOOL").replace("[1,3]", "[12]");
        let numbers: Vec<u8> = [1.5f32, -2.0, 3.25].iter().flat_map(|x| x.to_le_bytes()).collect();
        for (json, tail) in [
            (one, &numbers[..]),
            (one, &numbers[..11]),
            (one, &[&numbers[..], &[1]].concat()[..]),
            (two, &[&numbers[..], &[9]].concat()[..]),
            (wrong, &numbers[..]),
            (text, &[][..]),
            (flags, &numbers[..]),
            (&one[1..], &numbers[..]),
        ] {
            let want = binary(json, tail).map(|r| format!("{r:?}"));
            // Also where more comes than was promised, and what has come is moved.
            for room in [json.len() + tail.len(), 1] {
                assert_eq!(in_place(json, tail, room).0.map(|r| format!("{r:?}")), want, "{json}");
            }
        }
        let (request, at) = in_place(one, &numbers, one.len() + 12);
        assert_eq!(request.unwrap().inputs[0].1.view().bytes.as_ptr(), at, "not copied");
    }

    #[test]
    fn a_header_that_lies_is_refused() {
        assert_eq!(framing(None).unwrap(), Framing::Json);
        assert_eq!(framing(Some("0")).unwrap(), Framing::Raw);
        assert_eq!(framing(Some("12")).unwrap(), Framing::Binary(12));
        for text in ["-1", "x", "", "1.5", "99999999999999999999999"] {
            assert!(framing(Some(text)).is_err(), "{text}");
        }
        assert!(decode(Framing::Binary(3), b"{}", &[]).unwrap_err().to_string().contains("only 2 bytes"));
    }

    #[test]
    fn a_raw_body_takes_its_shape_from_the_model() {
        let shape = [None, Some(2)];
        let port = |shape| Port { name: "x", dtype: DType::F32, shape };
        let request = decode(Framing::Raw, &[0; 8], &[port(&shape)]).unwrap();
        assert_eq!(request.inputs[0].1.shape(), [1, 2]);
        assert!(request.binary_output);
        assert_eq!(decode(Framing::Raw, &[0; 16], &[port(&shape)]).unwrap().inputs[0].1.shape(), [2, 2]);
        assert!(decode(Framing::Raw, &[0; 7], &[port(&shape)]).is_err());
        assert!(decode(Framing::Raw, &[0; 8], &[port(&shape), port(&shape)]).is_err());
    }
}
