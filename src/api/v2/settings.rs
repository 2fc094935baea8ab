//! Triton's settings of the log, which follow the level of ours, and of traces, which this server does not write.

use crate::api::error::{Code, Problem};
use crate::api::{Context, LogLevel, Logs};

/// A value of a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Setting {
    /// A truth value.
    Bool(bool),
    /// A number.
    Number(u32),
    /// A text.
    Text(String),
}

/// The settings of the log, by name.
pub(crate) type LogSettings = [(&'static str, Setting); 6];

/// The settings of the log now.
///
/// # Errors
/// 501 where the level cannot be changed.
pub(crate) fn log(shared: &Context) -> Result<LogSettings, Problem> {
    Ok(of_level(logs(shared)?.level()))
}

/// Changes settings of the log; gives all of them.
///
/// # Errors
/// 400, by name, for a setting or a value that there is not; nothing has changed then.
pub(crate) fn update_log(shared: &Context, changes: &[(String, Setting)]) -> Result<LogSettings, Problem> {
    let logs = logs(shared)?;
    let level = level_after(logs.level(), changes).map_err(Problem::bad_request)?;
    logs.set_level(level).map_err(Problem::internal)?;
    tracing::info!(level = level.name(), "The log tells `{}` and worse from now on", level.name());
    Ok(of_level(level))
}

fn logs(shared: &Context) -> Result<&dyn Logs, Problem> {
    let missing = || Problem::new(Code::NotImplemented, "the settings of the log cannot be changed here");
    shared.logs.as_deref().ok_or_else(missing)
}

fn of_level(level: LogLevel) -> LogSettings {
    [
        ("log_file", Setting::Text(String::new())),
        ("log_info", Setting::Bool(level >= LogLevel::Info)),
        ("log_warning", Setting::Bool(level >= LogLevel::Warn)),
        ("log_error", Setting::Bool(level >= LogLevel::Error)),
        ("log_verbose_level", Setting::Number((level as u32).saturating_sub(LogLevel::Info as u32))),
        ("log_format", Setting::Text("default".to_owned())),
    ]
}

fn level_after(now: LogLevel, changes: &[(String, Setting)]) -> Result<LogLevel, String> {
    let mut settings = of_level(now);
    for (name, value) in changes {
        let Some((_, setting)) = settings.iter_mut().find(|(known, _)| known == name) else {
            return Err(format!("`{name}` is no setting of the log"));
        };
        match (&mut *setting, value) {
            (Setting::Bool(setting), Setting::Bool(value)) => *setting = *value,
            (Setting::Number(setting), Setting::Number(value)) => *setting = *value,
            (Setting::Text(setting), Setting::Text(value)) if setting == value => {}
            (Setting::Text(setting), Setting::Text(_)) => {
                return Err(format!("`{name}` is fixed at `{setting}`"));
            }
            (Setting::Bool(_), _) => return Err(format!("`{name}` must be true or false")),
            (Setting::Number(_), _) => return Err(format!("`{name}` must be a whole number of at least 0")),
            (Setting::Text(_), _) => return Err(format!("`{name}` must be a text")),
        }
    }
    // Ours is one level, which lets through all that is worse.
    let on = |name| settings.contains(&(name, Setting::Bool(true)));
    let verbose = settings.iter().find_map(|(_, s)| if let Setting::Number(n) = s { Some(*n) } else { None });
    let (error, warning, info) = (on("log_error"), on("log_warning"), on("log_info"));
    match (error, warning, info, verbose.unwrap_or(0)) {
        (true, true, true, 0) => Ok(LogLevel::Info),
        (true, true, true, 1) => Ok(LogLevel::Debug),
        (true, true, true, _) => Ok(LogLevel::Trace),
        (true, true, false, 0) => Ok(LogLevel::Warn),
        (true, false, false, 0) => Ok(LogLevel::Error),
        (false, false, false, 0) => Ok(LogLevel::Off),
        _ => Err("the log has one level: what is worse cannot be off while the rest is on \
                  (log_error, log_warning, log_info, log_verbose_level)"
            .to_owned()),
    }
}

/// What Triton can trace, at the values that say that nothing is traced.
const TRACE: [(&str, &str); 6] = [
    ("trace_level", "OFF"),
    ("trace_rate", "1000"),
    ("trace_count", "-1"),
    ("log_frequency", "0"),
    ("trace_file", ""),
    ("trace_mode", "triton"),
];

/// The settings of traces, of the server or of one endpoint: all fixed.
///
/// # Errors
/// 404 where there is no such endpoint.
pub(crate) fn trace(
    shared: &Context,
    model: Option<&str>,
) -> Result<[(&'static str, &'static str); 6], Problem> {
    if let Some(name) = model {
        shared.registry.entry(name, None)?;
    }
    Ok(TRACE)
}

/// Takes settings of traces that are so already, or that are cleared (no value); gives all of them.
///
/// # Errors
/// 400, by name, for every other one.
pub(crate) fn update_trace(
    shared: &Context,
    model: Option<&str>,
    changes: &[(String, Vec<String>)],
) -> Result<[(&'static str, &'static str); 6], Problem> {
    let all = trace(shared, model)?;
    for (name, values) in changes {
        let Some((_, fixed)) = TRACE.iter().find(|(known, _)| known == name) else {
            return Err(Problem::bad_request(format!("`{name}` is no setting of traces")));
        };
        if values.iter().any(|value| value != fixed) {
            return Err(Problem::bad_request(format!(
                "`{name}` is fixed at `{fixed}`: this server writes no traces"
            )));
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_what_its_settings_say() {
        for level in LogLevel::ALL {
            let settings: Vec<_> =
                of_level(level).into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
            for before in LogLevel::ALL {
                assert_eq!(level_after(before, &settings), Ok(level));
            }
        }
    }

    #[test]
    fn settings_change_the_level_or_are_refused_by_name() {
        let check = |now, name: &str, value| level_after(now, &[(name.to_owned(), value)]);
        let text = |text: &str| Setting::Text(text.to_owned());
        assert_eq!(check(LogLevel::Info, "log_verbose_level", Setting::Number(1)), Ok(LogLevel::Debug));
        assert_eq!(check(LogLevel::Info, "log_verbose_level", Setting::Number(7)), Ok(LogLevel::Trace));
        assert_eq!(check(LogLevel::Info, "log_info", Setting::Bool(false)), Ok(LogLevel::Warn));
        assert_eq!(check(LogLevel::Info, "log_file", text("")), Ok(LogLevel::Info));
        for (name, value, want) in [
            ("log_warning", Setting::Bool(false), "one level"),
            ("log_file", text("/tmp/log"), "`log_file` is fixed at ``"),
            ("log_info", text("yes"), "`log_info` must be true or false"),
            ("log_verbose_level", Setting::Bool(true), "`log_verbose_level` must be a whole number"),
            ("log_colour", text("red"), "`log_colour` is no setting"),
        ] {
            let error = check(LogLevel::Info, name, value).unwrap_err();
            assert!(error.contains(want), "{error}");
        }
    }
}
