//! Who wrote the addresses in the status of a Service: the API server notes the names of those who write a field. All
//! agents of one release write under one name, which no other release has.

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;

/// Begins the names of all releases.
const PREFIX: &str = "penstock:";
/// Of a name, as an API server takes it.
const LONGEST: usize = 128;
/// The addresses, as the notes call them.
const ADDRESSES: &str = "/f:status/f:loadBalancer/f:ingress";

/// The name of agents that share a Lease of this namespace; without a Lease, of all there.
pub fn writer(namespace: &str, lease: Option<&str>) -> String {
    let mut name = format!("{PREFIX}{namespace}");
    lease.into_iter().for_each(|lease| name.extend(["/", lease]));
    name.truncate(name.floor_char_boundary(LONGEST));
    name
}

/// Of the API server's notes about a Service those alone that say which releases wrote its addresses, and of these the
/// names alone. Nearly all Services have none.
pub fn writers(notes: Option<Vec<ManagedFieldsEntry>>) -> Option<Vec<ManagedFieldsEntry>> {
    let is_release = |entry: &ManagedFieldsEntry| {
        let has_addresses =
            entry.fields_v1.as_ref().is_some_and(|fields| fields.0.pointer(ADDRESSES).is_some());
        has_addresses && entry.manager.as_ref().is_some_and(|manager| manager.starts_with(PREFIX))
    };
    let named = notes.into_iter().flatten().filter(is_release);
    let mut named: Vec<_> =
        named.map(|entry| ManagedFieldsEntry { manager: entry.manager, ..Default::default() }).collect();
    named.shrink_to_fit();
    (!named.is_empty()).then_some(named)
}

/// Whether the addresses in its status are what agents of this name wrote, as far as [`writers`] tells.
pub fn wrote(service: &Service, writer: &str) -> bool {
    let notes = service.metadata.managed_fields.iter().flatten();
    notes.filter_map(|entry| entry.manager.as_deref()).any(|manager| manager == writer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(manager: &str, fields: serde_json::Value) -> Service {
        let notes = serde_json::json!([
            {"manager": "kubectl", "operation": "Update", "time": "2026-01-01T00:00:00Z", "fieldsType": "FieldsV1",
             "fieldsV1": {"f:spec": {"f:type": {}}}},
            {"manager": manager, "operation": "Apply", "subresource": "status", "fieldsType": "FieldsV1", "fieldsV1": fields},
        ]);
        let service = serde_json::json!({"metadata": {"name": "web", "managedFields": notes}});
        let mut service: Service = serde_json::from_value(service).expect("a Service");
        service.metadata.managed_fields = writers(service.metadata.managed_fields.take());
        service
    }

    #[test]
    fn who_wrote_the_addresses_is_told_by_his_name() {
        let ours = writer("edge", Some("edge-leader"));
        let addresses = serde_json::json!({"f:status": {"f:loadBalancer": {"f:ingress": {}}}});
        let more = serde_json::json!({"f:status": {"f:conditions": {}}});
        for (case, manager, fields, known, expected) in [
            ("our release", "penstock:edge/edge-leader", &addresses, 1, true),
            ("another of the namespace", "penstock:edge/other-leader", &addresses, 1, false),
            ("another controller", "speaker", &addresses, 0, false),
            ("our release, something else", "penstock:edge/edge-leader", &more, 0, false),
        ] {
            let service = service(manager, fields.clone());

            let notes = service.metadata.managed_fields.as_ref().map_or(0, Vec::len);
            assert_eq!((notes, wrote(&service, &ours)), (known, expected), "{case}");
        }
    }

    #[test]
    fn a_name_is_one_that_an_api_server_takes() {
        assert_eq!(writer("edge", None), "penstock:edge");
        assert_eq!(writer(&"n".repeat(63), Some(&"l".repeat(253))).len(), LONGEST);
    }
}
