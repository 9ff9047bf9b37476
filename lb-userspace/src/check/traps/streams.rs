//! ConfigMaps of TCP and UDP ports beside http and https.

use super::Caught;
use super::world::World;
use crate::model::ObjectName;
use crate::objects::{Key, Kind};
use crate::translate::StreamsBy;

/// Which flags name them.
const FLAGS: [&str; 2] = ["--tcp-services-configmap", "--udp-services-configmap"];

/// A ConfigMap of ports means nothing by itself.
pub(super) fn unnamed(world: &World<'_>, caught: &mut Caught) {
    for (name, sourced) in &world.objects.config_maps {
        let data = || sourced.object.data.iter().flatten();
        let holds_ports = data().next().is_some() && data().all(|(port, service)| is_entry(port, service));
        if holds_ports && !is_named(world, name) {
            let id = Key { kind: Kind::ConfigMap, name: name.clone() }.id(&sourced.origin);
            let message = "holds ports of Services, and no flag names it: none of them is served";
            let [tcp, udp] = FLAGS.map(|flag| format!("{flag} {name}"));
            let fix = format!("start with {tcp} (or {udp}), and have this report made with it");
            caught.needs_action(&id, "unnamed-ports", "data", message, fix);
        }
    }
}

/// Served by the kernel they are forwarded, where nginx stood in between.
pub(super) fn forwarded(world: &World<'_>, caught: &mut Caught) {
    if world.options.streams == StreamsBy::Proxy {
        return;
    }
    for (name, sourced) in &world.objects.config_maps {
        let is_empty = sourced.object.data.as_ref().is_none_or(|data| data.is_empty());
        if is_empty || !is_named(world, name) {
            continue;
        }
        let id = Key { kind: Kind::ConfigMap, name: name.clone() }.id(&sourced.origin);
        let message = "the kernel part forwards these ports: backends see the client's own address (but in mode nat), where they saw the controller's; proxy-stream-* of the ConfigMap mean nothing";
        let fix = "look over backends that go by addresses; with --datapath off the proxy stands in between, as nginx did";
        caught.differs(&id, "forwarded-ports", "data", message, fix);
    }
}

fn is_named(world: &World<'_>, name: &ObjectName) -> bool {
    [&world.options.tcp_services, &world.options.udp_services]
        .into_iter()
        .flatten()
        .any(|named| named == name)
}

/// `"5432": "default/db:5432"`.
fn is_entry(port: &str, service: &str) -> bool {
    let is_port = port.trim().parse::<u16>().is_ok_and(|port| port > 0);
    let parts =
        service.trim().split_once('/').and_then(|(namespace, rest)| Some((namespace, rest.split_once(':')?)));
    is_port && parts.is_some_and(|(namespace, (name, port))| ![namespace, name, port].contains(&""))
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::reported;

    #[test]
    fn ports_that_no_flag_names_are_told() {
        let map = |name, data| {
            format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{{data}}}\n---\n")
        };
        let input = [
            map("ports", "'5432': 'default/db:5432', '53': 'default/dns:53:PROXY'"),
            map("other", "'5432': 'default/db:5432', name: value"),
            map("empty", ""),
        ];

        assert_eq!(
            reported(&input.concat(), &["unnamed-ports"]),
            ["ConfigMap default/ports needs action: data [unnamed-ports]"]
        );
    }
}
