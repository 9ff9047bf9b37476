//! Which Secrets and ConfigMaps objects name. Who holds a whole cluster need not read the others.

use std::collections::BTreeSet;

use k8s_openapi::api::networking::v1::Ingress;

use super::Options;
use super::annotations::{PREFIX, external_auth};
use super::classes;
use super::config;
use super::findings::Findings;
use super::pools;
use crate::model::ObjectName;
use crate::model::pool::CONFIG_MAP;
use crate::objects::{Objects, References};

/// Annotations with the name of a Secret.
const SECRETS: [&str; 3] = ["auth-secret", "auth-tls-secret", "proxy-ssl-secret"];
/// Annotations with the name of a ConfigMap.
const CONFIG_MAPS: [&str; 3] = ["auth-proxy-set-headers", "custom-headers", "fastcgi-params-configmap"];
/// Annotations with a URL, which may be one of a Service.
const URLS_OF_SERVICES: [&str; 2] = ["auth-url", "mirror-target"];
/// Keys of the controller's ConfigMap with the name of another one.
const KEYS: [&str; 2] = ["add-headers", "proxy-set-headers"];

/// What the Ingresses of ours, the controller's ConfigMap and the flags name, whether or not it is
/// there, and whether or not they may.
pub fn references(objects: &Objects, options: &Options) -> References {
    let mut references = References::default();
    let References { secrets, config_maps, of_settings, config_maps_called } = &mut references;
    secrets.extend(options.default_ssl_certificate.clone());
    config_maps.extend(options.tcp_services.clone());
    config_maps.extend(options.udp_services.clone());
    let pools = pools::named(options);
    config_maps_called.extend(pools.is_none().then(|| CONFIG_MAP.to_owned()));
    config_maps.extend(pools);
    let flag = options.config_map.as_ref();
    config_maps.extend(flag.cloned());
    config_maps_called.extend(flag.is_none().then(|| config::NAME.to_owned()));
    for (name, sourced) in objects.config_maps.iter().filter(|(name, _)| config::may_count(name, flag)) {
        let data = sourced.object.data.as_ref();
        let named = KEYS.iter().filter_map(|key| data?.get(*key)).map(|text| of(text, &name.namespace));
        of_settings.extend(named.flatten().filter(|named| named.namespace == name.namespace));
        let named = KEYS.iter().filter_map(|key| data?.get(*key)).map(|text| of(text, &name.namespace));
        config_maps.extend(named.flatten());
    }
    for served in classes::served(objects, options, &mut Findings::default()) {
        let namespace = &served.name.namespace;
        config_maps.extend(annotated(served.ingress, &CONFIG_MAPS, namespace));
        secrets.extend(annotated(served.ingress, &SECRETS, namespace));
        let entries = served.ingress.spec.iter().flat_map(|spec| spec.tls.iter().flatten());
        let certificates = entries.filter_map(|entry| entry.secret_name.as_deref());
        secrets.extend(certificates.filter_map(|text| of(text, namespace)));
    }
    references
}

/// Services that an Ingress names: for its paths, and by annotations.
pub fn services(name: &ObjectName, ingress: &Ingress) -> BTreeSet<ObjectName> {
    let spec = ingress.spec.as_ref();
    let rules = spec.and_then(|spec| spec.rules.as_deref()).unwrap_or_default();
    let paths = rules.iter().flat_map(|rule| rule.http.iter()).flat_map(|http| &http.paths);
    let default = spec.and_then(|spec| spec.default_backend.as_ref());
    let backends = paths.map(|path| &path.backend).chain(default);
    let backends = backends.filter_map(|backend| backend.service.as_ref());
    let text = |name: &str| ingress.metadata.annotations.as_ref()?.get(&format!("{PREFIX}/{name}"));
    let beside =
        backends.map(|service| service.name.as_str()).chain(text("default-backend").map(|it| it.trim()));
    let beside = beside.map(|service| ObjectName::new(&name.namespace, service));
    let asked = URLS_OF_SERVICES.iter().filter_map(|name| external_auth::service_name(host_of(text(name)?)));
    beside.chain(asked).collect()
}

/// Host and port of a URL.
fn host_of(url: &str) -> &str {
    let (_, rest) = url.trim().split_once("://").unwrap_or_default();
    rest.split(['/', '?', '#']).next().unwrap_or_default()
}

fn annotated(ingress: &Ingress, names: &[&str], namespace: &str) -> BTreeSet<ObjectName> {
    let annotations = ingress.metadata.annotations.as_ref();
    let text = |name: &&str| annotations?.get(&format!("{PREFIX}/{name}"));
    names.iter().filter_map(text).filter_map(|text| of(text, namespace)).collect()
}

/// `name` or `namespace/name`.
fn of(text: &str, namespace: &str) -> Option<ObjectName> {
    let text = text.trim();
    let name = match text.split_once('/') {
        Some((namespace, name)) => ObjectName::new(namespace, name),
        None => ObjectName::new(namespace, text),
    };
    (!name.name.is_empty() && !name.namespace.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::annotations::table::{TABLE, Value};
    use super::super::config::table;
    use super::*;
    use crate::objects::Object;

    #[test]
    fn no_annotation_and_no_key_that_names_an_object_is_forgotten() {
        let annotations: BTreeSet<&str> =
            TABLE.iter().filter(|row| row.value == Value::Reference).map(|row| row.name).collect();
        // What has no effect is not read.
        let keys = table::KEYS.iter().filter(|row| row.fate == table::Fate::Plain);
        let keys = keys.filter(|row| row.form == table::Form::Reference);
        let keys: BTreeSet<&str> = keys.map(|row| row.name).collect();

        assert_eq!(annotations, SECRETS.into_iter().chain(CONFIG_MAPS).collect());
        assert_eq!(keys, BTreeSet::from(KEYS));
    }

    #[test]
    fn pools_that_nothing_names_are_known_by_their_usual_name() {
        let named = Options { address_pools: Some(ObjectName::new("edge", "pools")), ..Options::default() };

        let (usual, named) =
            (references(&Objects::default(), &Options::default()), references(&Objects::default(), &named));

        let called = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        assert_eq!(usual.config_maps_called, called(&[config::NAME, CONFIG_MAP]));
        assert_eq!(named.config_maps_called, called(&[config::NAME]));
        assert_eq!(named.config_maps, BTreeSet::from([ObjectName::new("edge", "pools")]));
    }

    #[test]
    fn what_settings_name_beside_themselves_is_of_them() {
        let settings = serde_json::json!({
            "metadata": {"namespace": "own", "name": config::NAME},
            "data": {"add-headers": "own/added", "proxy-set-headers": "elsewhere/set"},
        });
        let mut objects = Objects::default();
        objects.insert(Object::ConfigMap(Arc::new(serde_json::from_value(settings).expect("one"))), "");

        let references = references(&objects, &Options::default());

        let (added, set) = (ObjectName::new("own", "added"), ObjectName::new("elsewhere", "set"));
        assert_eq!(references.of_settings, BTreeSet::from([added.clone()]));
        assert_eq!(references.config_maps, BTreeSet::from([added, set]));
    }

    #[test]
    fn only_ingresses_of_ours_name_anything() {
        let ingress = |name: &str, class: &str| {
            let ingress = serde_json::json!({
                "metadata": {"namespace": "shop", "name": name, "annotations": {
                    "nginx.ingress.kubernetes.io/auth-secret": format!("{name}-users"),
                    "nginx.ingress.kubernetes.io/auth-tls-secret": format!("ca/{name}"),
                    "nginx.ingress.kubernetes.io/custom-headers": format!("shop/{name}-headers"),
                }},
                "spec": {"ingressClassName": class, "tls": [{"secretName": format!("{name}-tls")}, {"hosts": ["a"]}]},
            });
            Object::Ingress(Arc::new(serde_json::from_value(ingress).expect("an Ingress")))
        };
        let mut objects = Objects::default();
        objects.insert(ingress("ours", "nginx"), "");
        objects.insert(ingress("theirs", "traefik"), "");

        let references = references(&objects, &Options::default());

        let names = |names: &[(&str, &str)]| names.iter().map(|(a, b)| ObjectName::new(*a, *b)).collect();
        let secrets = names(&[("ca", "ours"), ("shop", "ours-tls"), ("shop", "ours-users")]);
        assert_eq!(references.secrets, secrets);
        assert_eq!(references.config_maps, names(&[("shop", "ours-headers")]));
    }
}
