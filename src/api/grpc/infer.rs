//! Inference over gRPC: messages to tensors and back, one by one or in a stream.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use tonic::metadata::MetadataMap;
use tonic::{Status, Streaming};

use crate::api::Context;
use crate::api::access::admit_again;
use crate::api::answered::Trail;
use crate::api::error::Problem;
use crate::api::grpc::given;
use crate::api::grpc::proto::infer_parameter::ParameterChoice;
use crate::api::grpc::proto::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use crate::api::grpc::proto::model_infer_response::InferOutputTensor;
use crate::api::grpc::proto::{
    InferParameter, InferTensorContents, ModelInferRequest, ModelInferResponse, ModelStreamInferResponse,
};
use crate::api::until::Until;
use crate::api::v2::infer::{close, run};
use crate::api::wire::request::{Described, NO_SEQUENCES, RANK_MAX, TENSORS_MAX, described, raw_tensor};
use crate::api::wire::response::{choose, classes, raw_texts};
use crate::api::wire::{Error, InferRequest, OutputRequest, Place, datatype_name};
use crate::engine::tensor::{DType, Element, Tensor};
use crate::service::infer::served::{Served, Ticket};
use crate::service::infer::stats::Spent;
use crate::service::keys::Caller;
use crate::service::metrics::Protocol;
use crate::service::store::Scope;

/// Requests of one stream that are under way at a time: enough to fill a batch, few enough to hold in memory.
const STREAM_DEPTH: usize = 16;

/// The answers of a stream.
pub(crate) type Answers = Pin<Box<dyn Stream<Item = Result<ModelStreamInferResponse, Status>> + Send>>;

/// Answers one request.
///
/// # Errors
/// As over REST.
pub(crate) async fn answer(
    shared: &Context,
    message: ModelInferRequest,
    deadline: Option<Instant>,
    until: Option<Until>,
    trail: Option<&Trail>,
) -> Result<ModelInferResponse, Problem> {
    if let Some(trail) = trail {
        trail.set_endpoint(&message.model_name);
    }
    let version = given(&message.model_version);
    let mut ticket = shared.registry.admit(&message.model_name, version, Protocol::Grpc).await?;
    ticket.set_until(until.map(|until| until.0));
    let result = answer_ticket(shared, &mut ticket, message, deadline, trail).await;
    close(shared, ticket, result)
}

async fn answer_ticket(
    shared: &Context,
    ticket: &mut Ticket,
    message: ModelInferRequest,
    deadline: Option<Instant>,
    trail: Option<&Trail>,
) -> Result<(ModelInferResponse, Spent), Problem> {
    let start = Instant::now();
    let served = Arc::clone(ticket.served());
    let mut request = decode(&message)?;
    // The bytes are tensors now.
    drop(message);
    let mut ran = run(shared, ticket, &mut request, start, deadline).await?;
    let response = encode(&request, std::mem::take(&mut ran.outputs), &served)?;
    let spent = ran.spent(ticket, trail);
    Ok((response, spent))
}

/// Answers the requests of a stream, in their order. A request that is refused does not end the stream.
pub(crate) fn answer_all(
    shared: Arc<Context>,
    messages: Streaming<ModelInferRequest>,
    deadline: Option<Instant>,
    caller: Option<Caller>,
) -> Answers {
    let mut stopping = shared.stopping.clone();
    // A stopping server takes no further requests, but answers those that it has.
    let stop = Box::pin(async move {
        let _ = stopping.wait_for(|stopping| *stopping).await;
    });
    let answers = messages.take_until(stop).map(move |message| {
        let (shared, caller) = (Arc::clone(&shared), caller.clone());
        async move { Ok(answer_in_stream(&shared, message?, deadline, caller.as_ref()).await) }
    });
    Box::pin(answers.buffered(STREAM_DEPTH))
}

async fn answer_in_stream(
    shared: &Context,
    message: ModelInferRequest,
    deadline: Option<Instant>,
    caller: Option<&Caller>,
) -> ModelStreamInferResponse {
    let id = message.id.clone();
    let last = matches!(
        choice(&message.parameters, "triton_enable_empty_final_response"),
        Some(ParameterChoice::BoolParam(true))
    );
    // Each is a request of its own.
    let result = match (admit_again(shared, caller, Scope::Infer), shared.in_flight.enter()) {
        (Err(problem), _) => Err(problem),
        (Ok(()), Some(_entered)) => answer(shared, message, deadline, None, None).await,
        (Ok(()), None) => Err(Problem::overloaded(shared.in_flight.max())),
    };
    match result {
        Ok(mut response) => {
            if last {
                // One answer a request, so each is the last one.
                let yes = InferParameter { parameter_choice: Some(ParameterChoice::BoolParam(true)) };
                response.parameters.insert("triton_final_response".to_owned(), yes);
            }
            ModelStreamInferResponse { error_message: String::new(), infer_response: Some(response) }
        }
        Err(problem) => {
            if let Some(cause) = &problem.cause {
                tracing::error!(%cause, "A request of a stream failed: {cause}");
            }
            let response = ModelInferResponse { id, ..ModelInferResponse::default() };
            ModelStreamInferResponse { error_message: problem.detail, infer_response: Some(response) }
        }
    }
}

/// When the client stops waiting: `grpc-timeout`, up to eight digits and a unit.
pub(crate) fn deadline(metadata: &MetadataMap) -> Option<Instant> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    Instant::now().checked_add(timeout(text)?)
}

fn timeout(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if number.len() > 8 || !number.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number: u64 = number.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

type Parameters = HashMap<String, InferParameter>;

fn choice<'a>(parameters: &'a Parameters, name: &str) -> Option<&'a ParameterChoice> {
    parameters.get(name)?.parameter_choice.as_ref()
}

/// A parameter that is a number of at least 0. Clients send it in either field.
fn whole(parameters: &Parameters, name: &str) -> Result<Option<u64>, Error> {
    let number = match choice(parameters, name) {
        None => return Ok(None),
        Some(ParameterChoice::Uint64Param(number)) => Some(*number),
        Some(ParameterChoice::Int64Param(number)) => u64::try_from(*number).ok(),
        Some(ParameterChoice::StringParam(text)) => text.parse().ok(),
        Some(ParameterChoice::BoolParam(_) | ParameterChoice::DoubleParam(_)) => None,
    };
    number.map(Some).ok_or_else(|| Error::Field(format!("`{name}` must be a whole number of at least 0")))
}

/// Reads a request.
fn decode(message: &ModelInferRequest) -> Result<InferRequest, Error> {
    for (what, count) in [("inputs", message.inputs.len()), ("outputs", message.outputs.len())] {
        if count > TENSORS_MAX {
            return Err(Error::Field(format!("{count} {what}, at most {TENSORS_MAX} are taken")));
        }
    }
    let parameters = &message.parameters;
    let precision = match choice(parameters, "precision") {
        None => None,
        Some(ParameterChoice::StringParam(text)) => Some(text.clone()),
        Some(_) => return Err(Error::Field("`precision` must be a string".to_owned())),
    };
    match choice(parameters, "sequence_id") {
        None | Some(ParameterChoice::Int64Param(0) | ParameterChoice::Uint64Param(0)) => (),
        Some(ParameterChoice::StringParam(text)) if text.is_empty() => (),
        Some(_) => return Err(Error::Field(NO_SEQUENCES.to_owned())),
    }
    let mut request = InferRequest {
        id: given(&message.id).map(str::to_owned),
        outputs: message.outputs.iter().map(output).collect::<Result<_, _>>()?,
        binary_output: true,
        precision,
        timeout_us: whole(parameters, "timeout")?.filter(|&us| us > 0),
        priority: whole(parameters, "priority")?.unwrap_or(0),
        ..InferRequest::default()
    };
    take_inputs(&mut request, message)?;
    Ok(request)
}

fn take_inputs(request: &mut InferRequest, message: &ModelInferRequest) -> Result<(), Error> {
    let places = message.inputs.iter().map(|input| {
        let wrong = |reason| Error::Input { name: input.name.clone(), reason };
        place(&input.parameters).map_err(wrong)
    });
    let places: Vec<Option<Place>> = places.collect::<Result<_, _>>()?;
    // One for each that does not lie in shared memory.
    let raw = &message.raw_input_contents;
    let count = places.iter().filter(|place| place.is_none()).count();
    if !raw.is_empty() && raw.len() != count {
        return Err(Error::Framing(format!(
            "{count} inputs, but {} entries of raw_input_contents: there must be one for each",
            raw.len()
        )));
    }
    let mut raw = raw.iter();
    for (input, place) in message.inputs.iter().zip(places) {
        let described = described_input(input)?;
        match place {
            None => request.push(input.name.clone(), tensor(input, &described, raw.next())?)?,
            Some(_) if values(input).is_some() => {
                let reason = "`contents` beside shared_memory_region: only one of them".to_owned();
                return Err(Error::Input { name: input.name.clone(), reason });
            }
            Some(place) => request.push_shared(input.name.clone(), described, place)?,
        }
    }
    Ok(())
}

/// The place in shared memory that parameters name, where they do.
fn place(parameters: &Parameters) -> Result<Option<Place>, String> {
    let region = match choice(parameters, "shared_memory_region") {
        None => return Ok(None),
        Some(ParameterChoice::StringParam(name)) => name.clone(),
        Some(_) => return Err("`shared_memory_region` must be a string".to_owned()),
    };
    let number = |name| whole(parameters, name).map_err(|error| error.to_string());
    let byte_size = number("shared_memory_byte_size")?.and_then(|n| usize::try_from(n).ok());
    let byte_size = byte_size.ok_or("no `shared_memory_byte_size` beside `shared_memory_region`")?;
    let offset = number("shared_memory_offset")?.unwrap_or(0);
    Ok(Some(Place { region, offset, byte_size }))
}

fn output(wanted: &InferRequestedOutputTensor) -> Result<OutputRequest, Error> {
    let wrong = |reason: String| Error::Output { name: wanted.name.clone(), reason };
    let place = place(&wanted.parameters).map_err(wrong)?;
    let classes = whole(&wanted.parameters, "classification").map_err(|error| wrong(error.to_string()))?;
    let classification = usize::try_from(classes.unwrap_or(0)).unwrap_or(usize::MAX);
    OutputRequest::new(wanted.name.clone(), None, classification, place)
}

fn described_input(input: &InferInputTensor) -> Result<Described, Error> {
    if input.name.is_empty() {
        return Err(Error::Field("an input without `name`".to_owned()));
    }
    if input.shape.len() > RANK_MAX {
        let reason = format!("{} dimensions, at most {RANK_MAX} are taken", input.shape.len());
        return Err(Error::Input { name: input.name.clone(), reason });
    }
    described(&input.name, &input.shape, &input.datatype)
}

fn tensor(input: &InferInputTensor, described: &Described, raw: Option<&Bytes>) -> Result<Tensor, Error> {
    let wrong = |reason: String| Error::Input { name: input.name.clone(), reason };
    match (raw, values(input)) {
        (Some(_), Some(_)) => {
            Err(wrong("has `contents` beside raw_input_contents: only one of them".to_owned()))
        }
        (Some(raw), None) if raw.len() != described.bytes => Err(wrong(format!(
            "{} bytes of raw_input_contents, but {} of shape {:?} takes {}",
            raw.len(),
            input.datatype,
            described.shape,
            described.bytes
        ))),
        (Some(raw), None) => raw_tensor(described.dtype, &described.shape, raw).map_err(wrong),
        (None, Some(contents)) => typed_tensor(described, contents).map_err(wrong),
        (None, None) if described.count == 0 => Ok(Tensor::zeros(described.dtype, &described.shape)),
        (None, None) => Err(wrong("neither `contents` nor raw_input_contents".to_owned())),
    }
}

/// The values that came with an input, where there are any.
fn values(input: &InferInputTensor) -> Option<&InferTensorContents> {
    input.contents.as_ref().filter(|contents| value_count(contents) > 0)
}

/// Values in all fields.
fn value_count(contents: &InferTensorContents) -> usize {
    contents.bool_contents.len()
        + contents.int_contents.len()
        + contents.int64_contents.len()
        + contents.uint_contents.len()
        + contents.uint64_contents.len()
        + contents.fp32_contents.len()
        + contents.fp64_contents.len()
        + contents.bytes_contents.len()
}

fn typed_tensor(described: &Described, contents: &InferTensorContents) -> Result<Tensor, String> {
    let Described { dtype, shape, count, .. } = described;
    let all = value_count(contents);
    let (field, found) = match dtype {
        DType::Bool => ("bool_contents", contents.bool_contents.len()),
        DType::I8 | DType::I16 | DType::I32 => ("int_contents", contents.int_contents.len()),
        DType::I64 => ("int64_contents", contents.int64_contents.len()),
        DType::U8 | DType::U16 | DType::U32 => ("uint_contents", contents.uint_contents.len()),
        DType::U64 => ("uint64_contents", contents.uint64_contents.len()),
        DType::F32 => ("fp32_contents", contents.fp32_contents.len()),
        DType::F64 => ("fp64_contents", contents.fp64_contents.len()),
        DType::F16 | DType::BF16 => {
            return Err(format!(
                "{} has no field in `contents`: use raw_input_contents",
                datatype_name(*dtype)
            ));
        }
    };
    if found != all {
        return Err(format!("the values of {} belong into {field} alone", datatype_name(*dtype)));
    }
    if found != *count {
        return Err(format!("{found} values in {field}, but shape {shape:?} holds {count}"));
    }
    match dtype {
        DType::Bool => {
            let bytes: Vec<u8> = contents.bool_contents.iter().map(|&b| u8::from(b)).collect();
            Ok(Tensor::from_slice(shape, &bytes).retyped(DType::Bool))
        }
        DType::I8 => narrowed::<_, i8>(shape, &contents.int_contents),
        DType::I16 => narrowed::<_, i16>(shape, &contents.int_contents),
        DType::I32 => Ok(Tensor::from_slice(shape, &contents.int_contents)),
        DType::I64 => Ok(Tensor::from_slice(shape, &contents.int64_contents)),
        DType::U8 => narrowed::<_, u8>(shape, &contents.uint_contents),
        DType::U16 => narrowed::<_, u16>(shape, &contents.uint_contents),
        DType::U32 => Ok(Tensor::from_slice(shape, &contents.uint_contents)),
        DType::U64 => Ok(Tensor::from_slice(shape, &contents.uint64_contents)),
        DType::F32 => Ok(Tensor::from_slice(shape, &contents.fp32_contents)),
        DType::F64 => Ok(Tensor::from_slice(shape, &contents.fp64_contents)),
        DType::F16 | DType::BF16 => Err("halves have no field".to_owned()),
    }
}

/// Values that travel in a wider type than they have.
fn narrowed<W: Copy + std::fmt::Display, N: Element + TryFrom<W>>(
    shape: &[usize],
    values: &[W],
) -> Result<Tensor, String> {
    let mut narrow = Vec::with_capacity(values.len());
    for &value in values {
        let fits = N::try_from(value);
        narrow.push(fits.map_err(|_| format!("{value} is out of the range of {}", datatype_name(N::DTYPE)))?);
    }
    Ok(Tensor::from_slice(shape, &narrow))
}

/// An output whose bytes the response borrows.
struct Output(Arc<Tensor>);

impl AsRef<[u8]> for Output {
    fn as_ref(&self) -> &[u8] {
        self.0.view().bytes
    }
}

/// Writes the outputs that `request` asks for, raw: the Python client of Triton reads nothing else.
fn encode(
    request: &InferRequest,
    outputs: Vec<Tensor>,
    served: &Served,
) -> Result<ModelInferResponse, Problem> {
    let names: Vec<&str> = served.outputs.iter().map(|port| port.name.as_str()).collect();
    let choices = choose(request, &names)?;
    let tensors: Vec<Arc<Tensor>> = outputs.into_iter().map(Arc::new).collect();
    let mut response = ModelInferResponse {
        model_name: served.name.to_string(),
        model_version: served.source.version.to_string(),
        id: request.id.clone().unwrap_or_default(),
        ..ModelInferResponse::default()
    };
    for choice in choices {
        let (name, tensor) = (names[choice.index].to_owned(), &tensors[choice.index]);
        let (datatype, shape, raw) = match choice.classification {
            0 if choice.place.is_some() => {
                (datatype_name(tensor.dtype()), tensor.shape().to_vec(), Bytes::new())
            }
            0 => {
                let bytes = Bytes::from_owner(Output(Arc::clone(tensor)));
                (datatype_name(tensor.dtype()), tensor.shape().to_vec(), bytes)
            }
            k => {
                let (shape, texts) = classes(tensor, k);
                ("BYTES", shape, raw_texts(&texts).into())
            }
        };
        response.outputs.push(InferOutputTensor {
            name,
            datatype: datatype.to_owned(),
            shape: shape.iter().map(|&d| i64::try_from(d).unwrap_or(i64::MAX)).collect(),
            parameters: choice.place.map(|place| place_parameters(place, tensor)).unwrap_or_default(),
            ..InferOutputTensor::default()
        });
        response.raw_output_contents.push(raw);
    }
    Ok(response)
}

/// Where an output was written to.
fn place_parameters(place: Place, tensor: &Tensor) -> Parameters {
    let byte_size = tensor.view().bytes.len() as u64;
    let parameters = [
        ("shared_memory_region", ParameterChoice::StringParam(place.region)),
        ("shared_memory_offset", ParameterChoice::Uint64Param(place.offset)),
        ("shared_memory_byte_size", ParameterChoice::Uint64Param(byte_size)),
    ];
    let entry =
        |(name, choice): (&str, _)| (name.to_owned(), InferParameter { parameter_choice: Some(choice) });
    parameters.into_iter().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents() -> InferTensorContents {
        InferTensorContents::default()
    }

    fn input(
        datatype: &str,
        shape: &[i64],
        contents: Option<InferTensorContents>,
        raw: &[&[u8]],
    ) -> Result<Tensor, String> {
        let input = InferInputTensor {
            name: "x".to_owned(),
            datatype: datatype.to_owned(),
            shape: shape.to_vec(),
            contents,
            ..InferInputTensor::default()
        };
        let raw_input_contents = raw.iter().map(|bytes| Bytes::copy_from_slice(bytes)).collect();
        let message =
            ModelInferRequest { inputs: vec![input], raw_input_contents, ..ModelInferRequest::default() };
        decode(&message).map(|mut request| request.inputs.remove(0).1).map_err(|error| error.to_string())
    }

    #[test]
    fn every_datatype_but_halves_reads_from_its_own_field() {
        let int = || InferTensorContents { int_contents: vec![1, 0], ..contents() };
        let uint = || InferTensorContents { uint_contents: vec![1, 0], ..contents() };
        let rows = [
            ("BOOL", InferTensorContents { bool_contents: vec![true, false], ..contents() }),
            ("INT8", int()),
            ("INT16", int()),
            ("INT32", int()),
            ("INT64", InferTensorContents { int64_contents: vec![1, 0], ..contents() }),
            ("UINT8", uint()),
            ("UINT16", uint()),
            ("UINT32", uint()),
            ("UINT64", InferTensorContents { uint64_contents: vec![1, 0], ..contents() }),
            ("FP32", InferTensorContents { fp32_contents: vec![1.0, 0.0], ..contents() }),
            ("FP64", InferTensorContents { fp64_contents: vec![1.0, 0.0], ..contents() }),
        ];
        for (datatype, values) in rows {
            let tensor = input(datatype, &[2], Some(values), &[]).unwrap();
            assert_eq!(datatype_name(tensor.dtype()), datatype);
            assert_eq!(tensor.to_f64(), [1.0, 0.0], "{datatype}");
        }
        assert_eq!(input("FP16", &[2], None, &[&[0, 60, 0, 64]]).unwrap().to_f64(), [1.0, 2.0]);
        assert_eq!(input("FP32", &[0, 4], None, &[]).unwrap().shape(), [0, 4]);
    }

    #[test]
    fn a_faulty_input_is_told_by_name() {
        let floats = |n| Some(InferTensorContents { fp32_contents: vec![1.0; n], ..contents() });
        let ints = |value| Some(InferTensorContents { int_contents: vec![value], ..contents() });
        let four: &[&[u8]] = &[&[0; 4]];
        for (result, want) in [
            (input("FP32", &[2], floats(3), &[]), "3 values in fp32_contents, but shape [2] holds 2"),
            (input("FP32", &[1], floats(1), four), "has `contents` beside raw_input_contents"),
            (input("FP32", &[2], None, four), "4 bytes of raw_input_contents, but FP32 of shape [2] takes 8"),
            (input("FP32", &[1], None, &[]), "neither `contents` nor raw_input_contents"),
            (input("INT32", &[1], floats(1), &[]), "the values of INT32 belong into int_contents alone"),
            (input("INT8", &[1], ints(128), &[]), "128 is out of the range of INT8"),
            (input("FP16", &[1], floats(1), &[]), "FP16 has no field"),
            (input("BOOL", &[4], None, &[&[0, 1, 2, 0]]), "neither 0 nor 1"),
            (input("BYTES", &[1], None, four), "BYTES (strings) is not supported"),
            (input("F32", &[1], None, four), "`F32` is not a datatype"),
            (input("FP32", &[-1], None, four), "[-1] has a dimension below 0"),
            (input("FP32", &[i64::MAX, 8], None, four), "is too large"),
            (input("FP32", &[1; 17], None, four), "17 dimensions"),
        ] {
            let error = result.expect_err(want);
            assert!(error.starts_with("input `x`: ") && error.contains(want), "{error}");
        }
        let error = input("FP32", &[1], None, &[&[0; 4], &[0; 4]]).unwrap_err();
        assert!(error.contains("1 inputs, but 2 entries of raw_input_contents"), "{error}");
    }

    #[test]
    fn tensors_in_shared_memory_are_named_and_not_sent() {
        let parameters = |place: [(&str, ParameterChoice); 3]| -> Parameters {
            let entry = |(name, choice): (&str, _)| {
                (name.to_owned(), InferParameter { parameter_choice: Some(choice) })
            };
            place.into_iter().map(entry).collect()
        };
        let place = |region, offset, byte_size| {
            parameters([
                ("shared_memory_region", region),
                ("shared_memory_offset", ParameterChoice::Int64Param(offset)),
                ("shared_memory_byte_size", ParameterChoice::Int64Param(byte_size)),
            ])
        };
        let text = |name: &str| ParameterChoice::StringParam(name.to_owned());
        let tensor = |name: &str, contents, parameters| InferInputTensor {
            name: name.to_owned(),
            datatype: "FP32".to_owned(),
            shape: vec![2],
            contents,
            parameters,
        };
        let read = |inputs: &[InferInputTensor], raw: usize| {
            let raw_input_contents = vec![Bytes::from_static(&[0; 8]); raw];
            let message = ModelInferRequest {
                inputs: inputs.to_vec(),
                raw_input_contents,
                ..ModelInferRequest::default()
            };
            decode(&message).map_err(|error| error.to_string())
        };
        let shared = tensor("x", None, place(text("r"), 16, 8));
        let sent = tensor("y", None, Parameters::new());
        let request = read(&[shared.clone(), sent.clone()], 1).unwrap();
        let want = Place { region: "r".to_owned(), offset: 16, byte_size: 8 };
        assert_eq!(request.shared_inputs[0].place, want);
        assert_eq!(request.inputs[0].0, "y");
        let values = InferTensorContents { fp32_contents: vec![1.0; 2], ..contents() };
        for (inputs, raw, says) in [
            (vec![shared.clone()], 1, "0 inputs, but 1 entries of raw_input_contents"),
            (vec![shared.clone(), shared.clone()], 0, "input `x`: given twice"),
            (vec![tensor("x", None, place(text("r"), 0, 7))], 0, "7 bytes of shared memory"),
            (vec![tensor("x", None, place(text("r"), -1, 8))], 0, "`shared_memory_offset` must be a whole"),
            (vec![tensor("x", None, place(ParameterChoice::BoolParam(true), 0, 8))], 0, "must be a string"),
            (vec![tensor("x", Some(values), place(text("r"), 0, 8))], 0, "`contents` beside shared_memory"),
        ] {
            let error = read(&inputs, raw).unwrap_err();
            assert!(error.contains(says), "{error} is not {says}");
        }
    }

    #[test]
    fn a_timeout_is_read_in_every_unit_and_nothing_else_is() {
        for (text, want) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("3S", Some(Duration::from_secs(3))),
            ("4m", Some(Duration::from_millis(4))),
            ("5u", Some(Duration::from_micros(5))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("100000000n", None),
            ("-1S", None),
            ("S", None),
            ("", None),
            ("1", None),
            ("1é", None),
        ] {
            assert_eq!(timeout(text), want, "{text}");
        }
    }
}
