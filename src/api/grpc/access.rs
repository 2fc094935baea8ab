//! What each call of the gRPC port needs a key for.

use crate::service::store::Scope;

/// The scope that a call needs; `None` where probes must get through. What is not known needs the most.
pub(crate) fn scope_of(path: &str) -> Option<Scope> {
    let (service, call) = path.trim_start_matches('/').split_once('/').unwrap_or((path, ""));
    match (service, call) {
        ("grpc.health.v1.Health", _) => None,
        ("grpc.reflection.v1.ServerReflection" | "grpc.reflection.v1alpha.ServerReflection", _) => {
            Some(Scope::Read)
        }
        (crate::api::grpc::INFERENCE, call) => known(call).map_or(Some(Scope::Admin), |(_, scope)| scope),
        _ => Some(Scope::Admin),
    }
}

/// The calls of the inference protocol that there are here, and the scope that each needs.
const CALLS: [(&str, Option<Scope>); 17] = [
    ("ServerLive", None),
    ("ServerReady", None),
    ("ModelReady", Some(Scope::Read)),
    ("ServerMetadata", Some(Scope::Read)),
    ("ModelMetadata", Some(Scope::Read)),
    ("ModelInfer", Some(Scope::Infer)),
    ("ModelStreamInfer", Some(Scope::Infer)),
    ("ModelConfig", Some(Scope::Read)),
    ("ModelStatistics", Some(Scope::Read)),
    ("RepositoryIndex", Some(Scope::Read)),
    ("RepositoryModelLoad", Some(Scope::Admin)),
    ("RepositoryModelUnload", Some(Scope::Admin)),
    ("SystemSharedMemoryStatus", Some(Scope::Read)),
    ("SystemSharedMemoryRegister", Some(Scope::Infer)),
    ("SystemSharedMemoryUnregister", Some(Scope::Infer)),
    // One call reads and changes settings.
    ("TraceSetting", Some(Scope::Admin)),
    ("LogSettings", Some(Scope::Admin)),
];

fn known(call: &str) -> Option<(&'static str, Option<Scope>)> {
    CALLS.into_iter().find(|(known, _)| *known == call)
}

/// The call of the inference protocol that a path names.
pub(crate) fn call_of(path: &str) -> Option<&'static str> {
    let call = path.trim_start_matches('/').strip_prefix(crate::api::grpc::INFERENCE)?.strip_prefix('/')?;
    known(call).map(|(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_of_the_protocol_has_the_scope_that_it_should() {
        let proto = include_str!("../../../proto/grpc_service.proto");
        let calls =
            proto.lines().filter_map(|line| line.trim().strip_prefix("rpc ")?.split(['(', ' ']).next());
        let mut admin = Vec::new();
        let mut count = 0;
        for call in calls {
            count += 1;
            let path = format!("/{}/{call}", crate::api::grpc::INFERENCE);
            assert_eq!(call_of(&path), Some(call));
            let scope = scope_of(&path);
            match scope {
                None => assert!(["ServerLive", "ServerReady"].contains(&call), "{call} is open"),
                Some(Scope::Infer) => {
                    let ends = ["Infer", "SharedMemoryRegister", "SharedMemoryUnregister"];
                    assert!(ends.iter().any(|end| call.ends_with(end)), "{call}");
                }
                Some(Scope::Admin) => admin.push(call),
                Some(Scope::Read) => {
                    let changes = ["Load", "Unload", "Settings", "Setting", "Register", "Infer"];
                    assert!(!changes.iter().any(|end| call.ends_with(end)), "{call} changes something");
                }
                Some(Scope::Write) => panic!("{call}"),
            }
        }
        assert!(count >= 13, "{count} calls");
        for call in ["RepositoryModelLoad", "RepositoryModelUnload", "TraceSetting", "LogSettings"] {
            assert!(admin.contains(&call), "{call}");
        }
        for unknown in ["/", "", "/x/y", "/inference.GRPCInferenceService/Later"] {
            assert_eq!((scope_of(unknown), call_of(unknown)), (Some(Scope::Admin), None), "{unknown}");
        }
    }
}
