//! Flags about the metrics of requests. Named as ingress-nginx names them, but for the limit.

use clap::Args;

use super::flags::{boolean, count};
use crate::config::Settings;

#[derive(Debug, Args)]
#[command(next_help_heading = "Metrics")]
pub(super) struct MeteringArgs {
    /// Count requests in metrics [default: true]
    #[arg(long, value_name = "BOOL", env = "PENSTOCK_ENABLE_METRICS", value_parser = boolean,
          num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    enable_metrics: Option<bool>,
    /// Tell the hosts apart in metrics of requests [default: true]
    #[arg(long, value_name = "BOOL", env = "PENSTOCK_METRICS_PER_HOST", value_parser = boolean,
          num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    metrics_per_host: Option<bool>,
    /// Count requests to hosts that no Ingress names, too
    #[arg(long, value_name = "BOOL", env = "PENSTOCK_METRICS_PER_UNDEFINED_HOST", value_parser = boolean,
          num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    metrics_per_undefined_host: Option<bool>,
    /// Tell the classes of statuses apart (2xx) in metrics of requests, instead of the statuses
    #[arg(long, value_name = "BOOL", env = "PENSTOCK_REPORT_STATUS_CLASSES", value_parser = boolean,
          num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    report_status_classes: Option<bool>,
    /// Leave out metrics of requests by their names, with or without nginx_ingress_controller_ in front;
    /// repeatable
    #[arg(long, value_name = "NAME", env = "PENSTOCK_EXCLUDE_SOCKET_METRICS", value_delimiter = ',')]
    exclude_socket_metrics: Vec<String>,
    /// Upper bounds of the histograms of durations, in seconds
    /// [default: 0.005,0.01,0.025,0.05,0.1,0.25,0.5,1,2.5,5,10]
    #[arg(long, value_name = "LIST", env = "PENSTOCK_TIME_BUCKETS")]
    time_buckets: Option<String>,
    /// Upper bounds of the histograms request_size and response_size, in bytes
    /// [default: 10,20,30,40,50,60,70,80,90,100]
    #[arg(long, value_name = "LIST", env = "PENSTOCK_LENGTH_BUCKETS")]
    length_buckets: Option<String>,
    /// Upper bounds of the histogram bytes_sent, in bytes [default: 10,100,1000,10000,100000,1e6,1e7]
    #[arg(long, value_name = "LIST", env = "PENSTOCK_SIZE_BUCKETS")]
    size_buckets: Option<String>,
    /// Most combinations of labels that are kept apart, in each worker; what is beyond is counted with
    /// the label values `overflow` [default: 10000]
    #[arg(long, value_name = "N", env = "PENSTOCK_METRICS_SERIES", value_parser = count::<usize>)]
    metrics_series: Option<usize>,
}

impl MeteringArgs {
    pub(super) fn put(self, settings: &mut Settings) {
        let Self {
            enable_metrics,
            metrics_per_host,
            metrics_per_undefined_host,
            report_status_classes,
            exclude_socket_metrics,
            time_buckets,
            length_buckets,
            size_buckets,
            metrics_series,
        } = self;
        settings.enable_metrics = enable_metrics;
        settings.metrics_per_host = metrics_per_host;
        settings.metrics_per_undefined_host = metrics_per_undefined_host;
        settings.report_status_classes = report_status_classes;
        settings.exclude_socket_metrics = exclude_socket_metrics;
        settings.time_buckets = time_buckets;
        settings.length_buckets = length_buckets;
        settings.size_buckets = size_buckets;
        settings.metrics_series = metrics_series;
    }
}
