//! What stands beside ingress-nginx in a cluster and has to move, or to go, with it.

use k8s_openapi::api::networking::v1::IngressClass;

use super::super::started::{Controller, controllers};
use super::world::World;
use super::{Caught, listed};
use crate::model::ObjectName;
use crate::objects::{Key, Kind};

const IS_DEFAULT: &str = "ingressclass.kubernetes.io/is-default-class";
/// Where ingress-nginx is asked about new Ingresses.
const ADMISSION_PATH: &str = "/networking/v1/ingresses";

/// A webhook that nobody answers keeps every new Ingress out.
pub(super) fn orphaned_webhook(world: &World<'_>, caught: &mut Caught) {
    for bystander in world.bystanders {
        for (field, to) in bystander.points_at.iter().filter(|(_, to)| to.ends_with(ADMISSION_PATH)) {
            let message = format!(
                "asks {to} about every Ingress: once ingress-nginx is gone, nobody answers there, and with failurePolicy Fail no Ingress can be written"
            );
            let fix = "delete it when ingress-nginx goes; penstock's chart brings its own (controller.admissionWebhooks.enabled)";
            caught.needs_action(&bystander.id, "orphaned-webhook", field, message, fix);
        }
    }
}

/// A controller that is scaled goes on being scaled when nobody needs it; ours needs its own.
pub(super) fn scaled_controller(world: &World<'_>, caught: &mut Caught) {
    let controllers = controllers(world.bystanders);
    let scalers = world.bystanders.iter().filter(|of| of.id.kind == "HorizontalPodAutoscaler");
    for bystander in scalers {
        let scales = |to: &str| {
            let is = |Controller { id, .. }: &Controller| {
                id.namespace == bystander.id.namespace && to == format!("{}/{}", id.kind, id.name)
            };
            to.ends_with("/ingress-nginx-controller") || controllers.iter().any(is)
        };
        for (field, to) in bystander.points_at.iter().filter(|(_, to)| scales(to)) {
            let message = format!(
                "scales {to}, not penstock; limits count per replica, so their number decides what limit-* let through"
            );
            let fix = "set controller.autoscaling in the values of penstock's chart";
            caught.differs(&bystander.id, "scales-ingress-nginx", field, message, fix);
        }
    }
}

/// Of several default classes the API server takes the newest.
pub(super) fn default_classes(world: &World<'_>, caught: &mut Caught) {
    let is_default = |class: &IngressClass| {
        let annotations = class.metadata.annotations.as_ref();
        annotations.and_then(|all| all.get(IS_DEFAULT)).is_some_and(|text| text == "true")
    };
    let classes = world.objects.ingress_classes.iter();
    let defaults: Vec<_> = classes.filter(|(_, class)| is_default(&class.object)).collect();
    if defaults.len() < 2 {
        return;
    }
    for (name, class) in &defaults {
        let others: Vec<_> = defaults.iter().map(|(other, _)| other).filter(|other| *other != name).collect();
        let message = format!(
            "{} is the default class, too: an Ingress without a class gets the newest of them, from older API servers none",
            listed(&others)
        );
        let fix = "leave the annotation on one class";
        let key = Key { kind: Kind::IngressClass, name: ObjectName::new("", name.as_str()) };
        let field = format!("metadata.annotations.{IS_DEFAULT}");
        caught.needs_action(&key.id(&class.origin), "several-default-classes", field, message, fix);
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::tests::{caught, reported};

    #[test]
    fn a_webhook_of_ingress_nginx_has_to_go_with_it() {
        let webhook = |path: &str| {
            format!(
                "apiVersion: admissionregistration.k8s.io/v1\nkind: ValidatingWebhookConfiguration\n\
                 metadata: {{name: ingress-nginx-admission}}\nwebhooks:\n- name: v\n  clientConfig:\n    \
                 service: {{namespace: edge, name: a, path: {path}}}\n"
            )
        };

        let found = reported(&webhook("/networking/v1/ingresses"), &["orphaned-webhook"]);
        assert_eq!(
            found,
            [
                "ValidatingWebhookConfiguration /ingress-nginx-admission needs action: webhooks[0].clientConfig.service [orphaned-webhook]"
            ]
        );
        assert_eq!(caught(&webhook("/other"), &["orphaned-webhook"]).len(), 0);
    }

    #[test]
    fn what_scales_ingress_nginx_does_not_scale_us() {
        let scaler = |name: &str| {
            format!(
                "apiVersion: autoscaling/v2\nkind: HorizontalPodAutoscaler\nmetadata: {{name: h, namespace: edge}}\n\
                 spec: {{scaleTargetRef: {{apiVersion: apps/v1, kind: Deployment, name: {name}}}}}\n"
            )
        };
        let controller = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: c, namespace: edge}\n\
            spec: {template: {spec: {containers: [{image: any, args: [/nginx-ingress-controller]}]}}}\n";
        let found = |input: &str| caught(input, &["scales-ingress-nginx"]).len();

        assert_eq!(found(&scaler("ingress-nginx-controller")), 1);
        assert_eq!(found(&format!("{}---\n{controller}", scaler("c"))), 1);
        assert_eq!(found(&scaler("c")), 0);
    }

    #[test]
    fn one_class_may_be_the_default() {
        let class = |name: &str| {
            format!(
                "apiVersion: networking.k8s.io/v1\nkind: IngressClass\nmetadata:\n  name: {name}\n  annotations: \
                 {{ingressclass.kubernetes.io/is-default-class: 'true'}}\nspec: {{controller: k8s.io/ingress-nginx}}\n"
            )
        };
        let found = |input: &str| caught(input, &["several-default-classes"]).len();

        assert_eq!(found(&class("a")), 0);
        assert_eq!(found(&format!("{}---\n{}", class("a"), class("b"))), 2);
    }
}
