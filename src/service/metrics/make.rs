//! Makes collectors as they are declared and registers them. Does not know which there are.

use prometheus::{
    GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
};

use super::{DECLARATIONS, Declaration, Kind};

/// Makes and registers what is declared.
pub(super) struct Make {
    pub(super) registry: Registry,
}

impl Make {
    fn declaration(name: &str) -> &'static Declaration {
        DECLARATIONS.iter().find(|declared| declared.name == name).expect("every metric made is declared")
    }

    pub(super) fn register(&self, collector: Box<dyn prometheus::core::Collector>) {
        self.registry.register(collector).expect("names are given once");
    }

    fn make<M>(&self, name: &str, make: impl FnOnce(Opts, &[&str]) -> prometheus::Result<M>) -> M
    where
        M: prometheus::core::Collector + Clone + 'static,
    {
        let declared = Make::declaration(name);
        let metric = make(Opts::new(declared.name, declared.help), declared.labels)
            .expect("declared names, labels and buckets are valid");
        self.register(Box::new(metric.clone()));
        metric
    }

    pub(super) fn counters(&self, name: &str) -> IntCounterVec {
        self.make(name, IntCounterVec::new)
    }

    pub(super) fn counter(&self, name: &str) -> IntCounter {
        self.make(name, |opts, _| IntCounter::with_opts(opts))
    }

    pub(super) fn gauges(&self, name: &str) -> GaugeVec {
        self.make(name, GaugeVec::new)
    }

    pub(super) fn int_gauges(&self, name: &str) -> IntGaugeVec {
        self.make(name, IntGaugeVec::new)
    }

    pub(super) fn int_gauge(&self, name: &str) -> IntGauge {
        self.make(name, |opts, _| IntGauge::with_opts(opts))
    }

    pub(super) fn histograms(&self, name: &str) -> HistogramVec {
        self.make(name, |opts, labels| HistogramVec::new(Make::histogram_opts(name, opts), labels))
    }

    pub(super) fn histogram(&self, name: &str) -> Histogram {
        self.make(name, |opts, _| Histogram::with_opts(Make::histogram_opts(name, opts)))
    }

    fn histogram_opts(name: &str, opts: Opts) -> HistogramOpts {
        match Make::declaration(name).kind {
            Kind::Histogram(buckets) => HistogramOpts::from(opts).buckets(buckets.bounds().to_vec()),
            Kind::Counter | Kind::Gauge => unreachable!("`{name}` is declared as a histogram"),
        }
    }
}
