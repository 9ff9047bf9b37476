//! One test's part of the API server, and how objects get there.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client};
use lb_tests::apiserver::{self, KUBECONFIG};
use lb_tests::tier;
use tokio::runtime::Runtime;

/// A namespace, gone with this.
pub struct Rig {
    pub namespace: String,
    pub client: Client,
    pub kubeconfig: PathBuf,
    pub runtime: Runtime,
}

impl Rig {
    /// `None` where no API server is at hand.
    pub fn new() -> Option<Self> {
        let kubeconfig = std::env::var_os(KUBECONFIG).map(PathBuf::from);
        let missing = || {
            let hint =
                "no API server is at hand; run `cargo xtask test cluster`, or the program with-apiserver";
            kubeconfig.as_ref().map(drop).ok_or_else(|| hint.to_owned())
        };
        if !tier::require("cluster", missing) {
            return None;
        }
        Some(Self::of(kubeconfig?))
    }

    /// A namespace of the server that this leads to.
    pub fn of(kubeconfig: PathBuf) -> Self {
        Self::at(kubeconfig).unwrap_or_else(|error| panic!("a namespace of the test's own: {error:#}"))
    }

    fn at(kubeconfig: PathBuf) -> Result<Self> {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let client = runtime.block_on(apiserver::client(&kubeconfig))?;
        let namespace = format!("t-{}-{}", std::process::id(), SERIAL.fetch_add(1, Ordering::Relaxed));
        let metadata = serde_json::json!({"metadata": {"name": namespace, "labels": {"test": namespace}}});
        let object: Namespace = serde_json::from_value(metadata)?;
        let api: Api<Namespace> = Api::all(client.clone());
        runtime.block_on(api.create(&PostParams::default(), &object))?;
        Ok(Self { namespace, client, kubeconfig, runtime })
    }

    /// Applies YAML as `kubectl apply` does, into the test's namespace unless it names one; each
    /// `NAMESPACE` stands for the test's.
    pub fn apply(&self, yaml: &str) {
        for document in yaml.replace("NAMESPACE", &self.namespace).split("\n---\n") {
            if let Err(error) = self.apply_one(document) {
                panic!("apply {document}: {error:#}");
            }
        }
    }

    fn apply_one(&self, document: &str) -> Result<()> {
        let object: Option<DynamicObject> = serde_saphyr::from_str(document)?;
        let Some(mut object) = object else { return Ok(()) };
        // The server wants one wherever one is applied; kubectl adds it as well.
        object.metadata.managed_fields = None;
        let types = object.types.clone().context("a kind")?;
        let api = self.api(&types.api_version, &types.kind, object.metadata.namespace.as_deref());
        let name = object.metadata.name.clone().context("a name")?;
        let params = PatchParams::apply("tests").force();
        self.runtime.block_on(api.patch(&name, &params, &Patch::Apply(&object)))?;
        Ok(())
    }

    /// Removes an object.
    pub fn delete(&self, kind: &str, name: &str) {
        let api = self.api(version_of(kind), kind, None);
        let deleted = self.runtime.block_on(api.delete(name, &DeleteParams::default()));
        deleted.unwrap_or_else(|error| panic!("delete {kind} {name}: {error}"));
    }

    /// An object as it is now, if it is.
    pub fn get(&self, kind: &str, name: &str) -> Option<DynamicObject> {
        let api = self.api(version_of(kind), kind, None);
        self.runtime.block_on(api.get_opt(name)).unwrap_or_else(|error| panic!("get {kind} {name}: {error}"))
    }

    /// All objects of a kind in the test's namespace.
    pub fn list(&self, kind: &str) -> Vec<DynamicObject> {
        let api = self.api(version_of(kind), kind, None);
        let list = self.runtime.block_on(api.list(&ListParams::default()));
        list.unwrap_or_else(|error| panic!("list {kind}: {error}")).items
    }

    /// Changes the status of an object, as whoever owns it would.
    pub fn patch_status(&self, kind: &str, name: &str, patch: &serde_json::Value) {
        let api = self.api(version_of(kind), kind, None);
        let (params, patch) = (PatchParams::default(), Patch::Merge(patch));
        let patched = self.runtime.block_on(api.patch_status(name, &params, &patch));
        patched.unwrap_or_else(|error| panic!("status of {kind} {name}: {error}"));
    }

    /// What kubectl prints.
    pub fn kubectl(&self, args: &[&str]) -> String {
        let mut command = Command::new("kubectl");
        command.arg("--kubeconfig").arg(&self.kubeconfig).args(["--namespace", &self.namespace]).args(args);
        let output = command.output().expect("kubectl is here");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// The kubeconfig of a new account that may do what the Role of its name allows.
    pub fn account(&self, name: &str) -> tempfile::NamedTempFile {
        self.apply(&format!(
            "apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}}}\n---\napiVersion: \
             rbac.authorization.k8s.io/v1\nkind: RoleBinding\nmetadata: {{name: {name}}}\nroleRef: {{apiGroup: \
             rbac.authorization.k8s.io, kind: Role, name: {name}}}\nsubjects: [{{kind: ServiceAccount, name: {name}, \
             namespace: NAMESPACE}}]\n"
        ));
        self.credentials(&self.namespace, name)
    }

    /// The kubeconfig of an account.
    pub fn credentials(&self, namespace: &str, name: &str) -> tempfile::NamedTempFile {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token");
        let asked = http::Request::post(path).header("content-type", "application/json");
        let spec =
            serde_json::json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
        let asked = asked.body(spec.to_string().into_bytes()).expect("a request");
        let answer: serde_json::Value = self.runtime.block_on(self.client.request(asked)).expect("a token");
        let token = answer["status"]["token"].as_str().expect("a token");
        let own = std::fs::read_to_string(&self.kubeconfig).expect("a kubeconfig");
        let (before, _) = own.split_once("token: \"").expect("the harness' token");
        let (_, after) = own.split_once("\"}\ncontexts").expect("the contexts");
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), format!("{before}token: \"{token}\"}}\ncontexts{after}"))
            .expect("writable");
        file
    }

    fn api(&self, version: &str, kind: &str, namespace: Option<&str>) -> Api<DynamicObject> {
        let (group, version) = version.rsplit_once('/').unwrap_or(("", version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        match kind {
            "IngressClass" | "Node" | "Namespace" | "ClusterRole" | "ClusterRoleBinding" => {
                Api::all_with(self.client.clone(), &resource)
            }
            _ => {
                let namespace = namespace.unwrap_or(&self.namespace);
                Api::namespaced_with(self.client.clone(), namespace, &resource)
            }
        }
    }
}

fn version_of(kind: &str) -> &'static str {
    match kind {
        "Ingress" | "IngressClass" => "networking.k8s.io/v1",
        "EndpointSlice" => "discovery.k8s.io/v1",
        "Lease" => "coordination.k8s.io/v1",
        "Role" | "RoleBinding" | "ClusterRole" | "ClusterRoleBinding" => "rbac.authorization.k8s.io/v1",
        _ => "v1",
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // Its objects stay behind where no controller runs; so does the namespace, until the server ends.
        let api: Api<Namespace> = Api::all(self.client.clone());
        let _ = self.runtime.block_on(api.delete(&self.namespace, &DeleteParams::default()));
    }
}
