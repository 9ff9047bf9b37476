//! What is deployed: the chart, what kustomize makes of the base, the alerts and the dashboard. Nothing runs
//! here; the tier `cluster` has a server judge the same objects.

mod chart;
mod image;
mod kustomize;
mod monitoring;
mod unit;
mod values;
mod webhook;
