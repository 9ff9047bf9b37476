#!/usr/bin/env python3
"""discovery_v1.py TREE TYPES: teaches the source of Kubernetes 1.20 in TREE discovery.k8s.io/v1.

TYPES is the Go package of its types as a later Debian has them. What this server cannot do of a
later one: hints by node, traffic distribution. Afterwards the code generators have to run.
"""
import pathlib
import re
import shutil
import sys

tree, types = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
old, new = "pkg/apis/discovery/v1beta1", "pkg/apis/discovery/v1"
LICENCE = (tree / old / "doc.go").read_text().split("*/")[0] + "*/\n\n"


def change(path, *changes):
    """Puts each new text in place of the old one, which has to stand there once."""
    text = (tree / path).read_text()
    for before, after in changes:
        assert text.count(before) == 1, f"{path}: {text.count(before)} times {before!r}"
        text = text.replace(before, after)
    (tree / path).write_text(text)


def conversion(version, to_internal, from_internal):
    """What of an endpoint is called differently within the server."""
    api = f"discovery{version}"
    (tree / f"pkg/apis/discovery/{version}/conversion.go").write_text(LICENCE + f"""package {version}

import (
	{api} "k8s.io/api/discovery/{version}"
	"k8s.io/apimachinery/pkg/conversion"
	"k8s.io/kubernetes/pkg/apis/discovery"
)

func Convert_{version}_Endpoint_To_discovery_Endpoint(in *{api}.Endpoint, out *discovery.Endpoint, s conversion.Scope) error {{
	err := autoConvert_{version}_Endpoint_To_discovery_Endpoint(in, out, s)
	{to_internal}
	return err
}}

func Convert_discovery_Endpoint_To_{version}_Endpoint(in *discovery.Endpoint, out *{api}.Endpoint, s conversion.Scope) error {{
	err := autoConvert_discovery_Endpoint_To_{version}_Endpoint(in, out, s)
	{from_internal}
	return err
}}
""")


# The types that clients see.
seen = tree / "staging/src/k8s.io/api/discovery/v1"
shutil.rmtree(seen, ignore_errors=True)
shutil.copytree(types, seen)

# The types within: what v1 has more.
change("pkg/apis/discovery/types.go", ("""	NodeName *string
}
""", """	NodeName *string
	// Zone that the endpoint is in.
	// +optional
	Zone *string
	// Hints say who should use the endpoint.
	// +optional
	Hints *EndpointHints
}

// EndpointHints say who should use an endpoint.
type EndpointHints struct {
	// ForZones are the zones in which it should be used.
	ForZones []ForZone
}

// ForZone names a zone.
type ForZone struct {
	// Name of the zone.
	Name string
}
"""))

# From one to the other: v1 is made like v1beta1.
(tree / new).mkdir(parents=True, exist_ok=True)
for name in ["doc.go", "register.go", "defaults.go"]:
    text = (tree / old / name).read_text()
    if name == "defaults.go":
        text = text.replace('v1 "k8s.io/api/core/v1"', 'corev1 "k8s.io/api/core/v1"')
        text = text.replace("= v1.ProtocolTCP", "= corev1.ProtocolTCP")
    (tree / new / name).write_text(text.replace("v1beta1", "v1"))
conversion("v1", "out.Topology = in.DeprecatedTopology", "out.DeprecatedTopology = in.Topology")
# Nobody is served v1beta1 here, so what it lacks may be lost.
conversion("v1beta1", "", "")
change(
    "pkg/apis/discovery/install/install.go",
    ('\t"k8s.io/kubernetes/pkg/apis/discovery/v1alpha1"\n', '\t"k8s.io/kubernetes/pkg/apis/discovery/v1"\n'),
    ("v1alpha1.AddToScheme", "v1.AddToScheme"),
    ("(v1beta1.SchemeGroupVersion, v1alpha1.SchemeGroupVersion)", "(v1.SchemeGroupVersion, v1beta1.SchemeGroupVersion)"),
)

# Serve it: in place of v1alpha1 in the storage, beside v1beta1 elsewhere.
storage = tree / "pkg/registry/discovery/rest/storage_discovery.go"
storage.write_text(storage.read_text().replace("v1alpha1", "v1"))
imported = '\tdiscoveryv1beta1 "k8s.io/api/discovery/v1beta1"\n'
change(
    "pkg/controlplane/instance.go",
    (imported, '\tdiscoveryv1 "k8s.io/api/discovery/v1"\n' + imported),
    ("\t\tdiscoveryv1beta1.SchemeGroupVersion,\n", "\t\tdiscoveryv1.SchemeGroupVersion,\n\t\tdiscoveryv1beta1.SchemeGroupVersion,\n"),
)
listed = '\t{Group: "discovery.k8s.io", Version: "v1beta1"}:              {group: 16200, version: 12},\n'
change(
    "cmd/kube-apiserver/app/aggregator.go",
    (listed, '\t{Group: "discovery.k8s.io", Version: "v1"}:                   {group: 16200, version: 15},\n' + listed),
)

# What every server of today has: on without being asked for.
features = tree / "pkg/features/kube_features.go"
text = features.read_text()
for gate in ["EndpointSliceTerminatingCondition", "EndpointSliceNodeName", "IPv6DualStack", "MixedProtocolLBService"]:
    pattern = rf"(\t{gate}:\s+)\{{Default: false, PreRelease: featuregate.Alpha\}}"
    text, found = re.subn(pattern, r"\1{Default: true, PreRelease: featuregate.Beta}", text)
    assert found == 1, gate
features.write_text(text)

# A Service whose ports name no protocol can be applied twice.
core = tree / "staging/src/k8s.io/api/core/v1/types.go"
text = core.read_text()
at = text.index("\tProtocol Protocol `json", text.index("type ServicePort struct {"))
core.write_text(text[:at] + '\t// +default="TCP"\n' + text[at:])
