//! Tensors in shared memory: fetched for a request and written after it, and what both protocols say of regions.

use crate::api::Context;
use crate::api::error::{Code, Problem};
use crate::api::wire::request::check_bytes;
use crate::api::wire::response::choose;
use crate::api::wire::{self, InferRequest, SharedInput};
use crate::engine::tensor::{Incoming, Tensor};
use crate::service::infer::Port;
use crate::service::infer::shared_memory::{Error, SharedMemory};

/// The regions.
///
/// # Errors
/// 501 where the server has none.
pub(crate) fn regions(shared: &Context) -> Result<&SharedMemory, Problem> {
    let off =
        || Problem::new(Code::NotImplemented, "shared memory is off: see the setting serving.shared_memory");
    shared.shared_memory.as_ref().ok_or_else(off)
}

/// Puts the inputs that lie in shared memory beside the others.
///
/// # Errors
/// The input, and why it cannot be had.
pub(crate) fn fetch(shared: &Context, request: &mut InferRequest) -> Result<(), Problem> {
    if request.shared_inputs.is_empty() {
        return Ok(());
    }
    let regions = regions(shared)?;
    // As many bytes as a body could have brought.
    let limit = shared.limits.infer_body_bytes;
    let total =
        request.shared_inputs.iter().try_fold(0u64, |sum, i| sum.checked_add(i.place.byte_size as u64));
    if total.is_none_or(|total| total > limit) {
        let detail = format!("the inputs in shared memory are longer than the limit of {limit} bytes");
        return Err(Problem::new(Code::TooLarge, detail));
    }
    for input in std::mem::take(&mut request.shared_inputs) {
        let tensor = fetched(regions, &input)
            .map_err(|reason| wire::Error::Input { name: input.name.clone(), reason })?;
        request.inputs.push((input.name, tensor));
    }
    Ok(())
}

fn fetched(regions: &SharedMemory, input: &SharedInput) -> Result<Tensor, String> {
    let SharedInput { dtype, shape, place, .. } = input;
    let mut incoming = Incoming::with_room(place.byte_size, 0);
    let read = incoming.extend_by(|bytes| regions.read(&place.region, place.offset, place.byte_size, bytes));
    read.map_err(|error| error.to_string())?;
    check_bytes(*dtype, incoming.bytes())?;
    Ok(incoming.into_tensor(*dtype, shape, 0).expect("as many bytes as the shape takes"))
}

/// Writes the outputs that `request` wants in shared memory.
///
/// # Errors
/// The output, and why it cannot be written.
pub(crate) fn store(
    shared: &Context,
    request: &InferRequest,
    ports: &[Port],
    outputs: &[Tensor],
) -> Result<(), Problem> {
    if request.outputs.iter().all(|output| output.place.is_none()) {
        return Ok(());
    }
    let regions = regions(shared)?;
    let names: Vec<&str> = ports.iter().map(|port| port.name.as_str()).collect();
    for choice in choose(request, &names)? {
        let Some(place) = choice.place else { continue };
        let bytes = outputs[choice.index].view().bytes;
        let wrong = |reason| wire::Error::Output { name: names[choice.index].to_owned(), reason };
        if bytes.len() > place.byte_size {
            let (size, room) = (bytes.len(), place.byte_size);
            return Err(wrong(format!("it has {size} bytes, shared_memory_byte_size is {room}")).into());
        }
        regions.write(&place.region, place.offset, bytes).map_err(|error| wrong(error.to_string()))?;
    }
    Ok(())
}

impl From<Error> for Problem {
    fn from(error: Error) -> Problem {
        let code = match error {
            Error::Unknown(_) => Code::NotFound,
            Error::Taken(_) | Error::TooMany => Code::InUse,
            Error::BadKey(_)
            | Error::Open { .. }
            | Error::Short { .. }
            | Error::Outside { .. }
            | Error::Io { .. } => Code::BadRequest,
        };
        Problem::new(code, error.to_string())
    }
}
