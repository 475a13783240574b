//! The trace context of messages: every message that is sent because of a job carries the job's trace.

use telecine_domain::trace::{SpanId, TraceContext, TraceId};

use crate::types::v1;

/// A first step of a trace.
pub fn begin(trace: TraceId) -> TraceContext {
    TraceContext::new(trace, SpanId::new(rand::random()))
}

/// As it travels: each message is a step of its own.
pub fn to_wire(trace: Option<TraceContext>) -> Option<v1::TraceContext> {
    let step = trace?.child(SpanId::new(rand::random()));
    Some(v1::TraceContext { traceparent: step.to_string(), tracestate: String::new() })
}

/// What a message says; one that says nothing, or nonsense, belongs to no trace.
pub fn of_wire(trace: Option<&v1::TraceContext>) -> Option<TraceContext> {
    trace?.traceparent.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_carries_the_trace_under_a_step_of_its_own() {
        let trace = begin("4bf92f3577b34da6a3ce929d0e0e4736".parse().unwrap());
        let told = of_wire(to_wire(Some(trace)).as_ref()).unwrap();
        assert_eq!(told.trace, trace.trace);
        assert_ne!(told.span, trace.span);
        assert_eq!((to_wire(None), of_wire(None)), (None, None));
        let nonsense = v1::TraceContext { traceparent: "nonsense".to_owned(), ..Default::default() };
        assert_eq!(of_wire(Some(&nonsense)), None);
    }
}
