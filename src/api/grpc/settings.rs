//! Settings of the log and of traces as messages.

use crate::api::error::Problem;
use crate::api::grpc::proto::{
    LogSettingsRequest, LogSettingsResponse, TraceSettingResponse, log_settings_request,
    log_settings_response, trace_setting_response,
};
use crate::api::v2::settings::{LogSettings, Setting};

/// The changes that a message asks for.
///
/// # Errors
/// 400 where a setting has no value.
pub(crate) fn log_changes(message: LogSettingsRequest) -> Result<Vec<(String, Setting)>, Problem> {
    use log_settings_request::setting_value::ParameterChoice;
    let change = |(name, value): (String, log_settings_request::SettingValue)| {
        let setting = match value.parameter_choice {
            Some(ParameterChoice::BoolParam(value)) => Setting::Bool(value),
            Some(ParameterChoice::Uint32Param(value)) => Setting::Number(value),
            Some(ParameterChoice::StringParam(value)) => Setting::Text(value),
            None => return Err(Problem::bad_request(format!("`{name}` has no value"))),
        };
        Ok((name, setting))
    };
    message.settings.into_iter().map(change).collect()
}

/// The settings of the log as a message.
pub(crate) fn log(settings: LogSettings) -> LogSettingsResponse {
    use log_settings_response::setting_value::ParameterChoice;
    let value = |setting| {
        let choice = match setting {
            Setting::Bool(value) => ParameterChoice::BoolParam(value),
            Setting::Number(value) => ParameterChoice::Uint32Param(value),
            Setting::Text(value) => ParameterChoice::StringParam(value),
        };
        log_settings_response::SettingValue { parameter_choice: Some(choice) }
    };
    let settings = settings.into_iter().map(|(name, setting)| (name.to_owned(), value(setting)));
    LogSettingsResponse { settings: settings.collect() }
}

/// The settings of traces as a message.
pub(crate) fn trace(settings: [(&'static str, &'static str); 6]) -> TraceSettingResponse {
    let value = |text: &str| trace_setting_response::SettingValue { value: vec![text.to_owned()] };
    let settings = settings.into_iter().map(|(name, text)| (name.to_owned(), value(text)));
    TraceSettingResponse { settings: settings.collect() }
}
