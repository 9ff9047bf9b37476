//! Alerts and dashboards that ask for metrics of ingress-nginx.

use std::collections::BTreeSet;

use super::world::World;
use super::{Caught, listed};
use crate::objects::{Key, Kind};

const PREFIX: &str = "nginx_ingress_controller_";

/// All metrics of ingress-nginx that there are here, without the prefix.
pub const METRICS: [&str; 36] = [
    "requests",
    "request_duration_seconds",
    "response_duration_seconds",
    "header_duration_seconds",
    "connect_duration_seconds",
    "request_size",
    "response_size",
    "bytes_sent",
    "build_info",
    "config_hash",
    "config_last_reload_successful",
    "config_last_reload_successful_timestamp_seconds",
    "success",
    "errors",
    "check_success",
    "check_errors",
    "ssl_expire_time_seconds",
    "ssl_certificate_info",
    "leader_election_status",
    "orphan_ingress",
    "nginx_process_connections",
    "nginx_process_connections_total",
    "nginx_process_requests_total",
    "nginx_process_num_procs",
    "nginx_process_cpu_seconds_total",
    "nginx_process_read_bytes_total",
    "nginx_process_write_bytes_total",
    "nginx_process_resident_memory_bytes",
    "nginx_process_virtual_memory_bytes",
    "nginx_process_oldest_start_time_seconds",
    "admission_tested_ingresses",
    "admission_tested_duration",
    "admission_render_ingresses",
    "admission_render_duration",
    "admission_config_size",
    "admission_roundtrip_duration",
];

/// Whoever asks for one that does not exist waits for it for ever, and an alert never fires.
pub(super) fn unknown(world: &World<'_>, caught: &mut Caught) {
    for (name, sourced) in &world.objects.config_maps {
        let id = Key { kind: Kind::ConfigMap, name: name.clone() }.id(&sourced.origin);
        for (key, text) in sourced.object.data.iter().flatten() {
            judge(&id, format!("data.{key}"), text, caught);
        }
    }
    for bystander in world.bystanders {
        for (field, text) in &bystander.queries {
            judge(&bystander.id, field.clone(), text, caught);
        }
    }
}

fn judge(id: &crate::model::ObjectId, field: String, text: &str, caught: &mut Caught) {
    let missing: Vec<_> = named(text).into_iter().filter(|name| !exists(name)).collect();
    if missing.is_empty() {
        return;
    }
    let message = format!("asks for {}, which is no metric here", listed(&missing));
    let fix = match missing.iter().any(|name| name.ends_with("ingress_upstream_latency_seconds")) {
        true => "ingress-nginx has it no more either: use nginx_ingress_controller_response_duration_seconds",
        false => "see what there is: curl -s http://127.0.0.1:10254/metrics",
    };
    caught.needs_action(id, "unknown-metric", field, message, fix);
}

/// Names of metrics in a text; not beginnings of names, as patterns have them.
fn named(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with(PREFIX) && !word.ends_with('_')).collect()
}

fn exists(name: &str) -> bool {
    let name = name.strip_prefix(PREFIX).unwrap_or(name);
    let parts = ["_bucket", "_sum", "_count"];
    let base = parts.iter().find_map(|part| name.strip_suffix(part)).unwrap_or(name);
    METRICS.contains(&name) || METRICS.contains(&base)
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::{messages, reported};

    #[test]
    fn dashboards_and_alerts_that_ask_for_what_does_not_exist_are_told() {
        let dashboard = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: dashboard}\ndata:\n  d.json: |\n    \
            {\"expr\": \"sum(rate(nginx_ingress_controller_requests[5m])) by (ingress)\"}\n    \
            {\"expr\": \"nginx_ingress_controller_request_duration_seconds_bucket\"}\n    \
            {\"expr\": \"{__name__=~'nginx_ingress_controller_.*'}\"}\n    \
            {\"expr\": \"nginx_ingress_controller_ingress_upstream_latency_seconds_sum\"}\n";
        let rule = "apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata: {name: alerts}\n\
            spec: {groups: [{rules: [{alert: A, expr: nginx_ingress_controller_success == 0}, \
            {alert: B, expr: nginx_ingress_controller_nginx_process_gone > 1}]}]}\n";
        let input = format!("{dashboard}---\n{rule}");

        assert_eq!(
            reported(&input, &["unknown-metric"]),
            [
                "ConfigMap default/dashboard needs action: data.d.json [unknown-metric]",
                "PrometheusRule /alerts needs action: spec.groups[0].rules[1].expr [unknown-metric]",
            ]
        );
        assert_eq!(
            messages(&input, &["unknown-metric"]),
            [
                "asks for nginx_ingress_controller_ingress_upstream_latency_seconds_sum, which is no metric here",
                "asks for nginx_ingress_controller_nginx_process_gone, which is no metric here",
            ]
        );
    }
}
