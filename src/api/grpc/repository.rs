//! The messages that load a model.

use bytes::Bytes;

use crate::api::answered::Trail;
use crate::api::error::Problem;
use crate::api::grpc::proto::RepositoryModelLoadRequest;
use crate::api::grpc::proto::model_repository_parameter::ParameterChoice;

/// A load, read.
pub(crate) struct Load {
    /// The endpoint.
    pub(crate) name: String,
    /// Triton's model configuration as JSON.
    pub(crate) config: Option<String>,
    /// `file:VERSION/NAME.onnx`, and its bytes.
    pub(crate) file: Option<(String, Bytes)>,
}

/// The endpoint that a message names. KServe's own protocol has the name where Triton's has the repository, which
/// this server has none of.
pub(crate) fn name<'a>(model: &'a str, repository: &'a str) -> &'a str {
    if model.is_empty() { repository } else { model }
}

impl Load {
    /// Reads a message, and notes which endpoint it names.
    ///
    /// # Errors
    /// 400 for a parameter of another type, and for more than one file.
    pub(crate) fn read(message: RepositoryModelLoadRequest, trail: &Trail) -> Result<Load, Problem> {
        let name = name(&message.model_name, &message.repository_name).to_owned();
        trail.set_endpoint(&name);
        let mut load = Load { name, config: None, file: None };
        for (key, value) in message.parameters {
            let wrong = |what: &str| Problem::bad_request(format!("`{key}` must be {what}"));
            if key == "config" {
                let Some(ParameterChoice::StringParam(text)) = value.parameter_choice else {
                    return Err(wrong("a string"));
                };
                load.config = Some(text);
            } else if key.starts_with("file:") {
                let Some(ParameterChoice::BytesParam(bytes)) = value.parameter_choice else {
                    return Err(wrong("bytes"));
                };
                if load.file.is_some() {
                    return Err(Problem::bad_request(
                        "more than one file: a model whose data are in other files goes up as an archive, \
                         with PUT /v1/models/NAME",
                    ));
                }
                load.file = Some((key, bytes));
            }
        }
        Ok(load)
    }
}
