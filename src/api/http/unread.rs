//! Bodies that nobody reads to their end. A client that is refused while it sends sees a connection that breaks, and not
//! why, if the server closes it then: so what still comes is read for a while and thrown away.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{Version, header};
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};

/// For what a client still sends. It may send longer: then the connection ends.
const PATIENCE: Duration = Duration::from_secs(5);

/// A request whose body is read by the server where its handler leaves it. With HTTP/2 a client is told to stop.
pub(crate) fn watched(request: Request<Incoming>) -> Request {
    // Nothing comes before it is asked for, and to read asks for it.
    let waits = request.headers().contains_key(header::EXPECT);
    match request.version() {
        Version::HTTP_10 | Version::HTTP_11 => request
            .map(|body| Body::new(Watched { body: Some(body), is_asked_for: !waits, patience: PATIENCE })),
        _ => request.map(Body::new),
    }
}

/// A body that has not ended.
struct Watched<B: HttpBody<Data = Bytes> + Unpin + Send + 'static> {
    body: Option<B>,
    /// Whether the client sends it.
    is_asked_for: bool,
    patience: Duration,
}

impl<B: HttpBody<Data = Bytes> + Unpin + Send + 'static> HttpBody for Watched<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        this.is_asked_for = true;
        let Some(body) = &mut this.body else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(body).poll_frame(context));
        if !matches!(frame, Some(Ok(_))) {
            this.body = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

impl<B: HttpBody<Data = Bytes> + Unpin + Send + 'static> Drop for Watched<B> {
    fn drop(&mut self) {
        let Some(mut body) = self.body.take().filter(|body| self.is_asked_for && !body.is_end_stream())
        else {
            return;
        };
        // When the server has ended there is nobody left who reads.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let to_its_end = async move {
            while let Some(Ok(_)) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {}
        };
        runtime.spawn(tokio::time::timeout(self.patience, to_its_end));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::convert::Infallible;
    use std::sync::{Arc, Mutex};

    use super::*;

    /// Parts that come when they are asked for; the last one never, where it is `None`.
    #[derive(Clone)]
    struct Parts(Arc<Mutex<VecDeque<Option<&'static [u8]>>>>);

    impl Parts {
        fn of(parts: &[Option<&'static [u8]>]) -> Parts {
            Parts(Arc::new(Mutex::new(parts.iter().copied().collect())))
        }

        fn left(&self) -> usize {
            self.0.lock().unwrap().len()
        }
    }

    impl HttpBody for Parts {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            match self.0.lock().unwrap().pop_front() {
                Some(Some(part)) => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(part))))),
                Some(None) => Poll::Pending,
                None => Poll::Ready(None),
            }
        }

        fn is_end_stream(&self) -> bool {
            self.left() == 0
        }
    }

    async fn until(is_so: impl Fn() -> bool) {
        let in_time = tokio::time::timeout(Duration::from_secs(10), async {
            while !is_so() {
                tokio::task::yield_now().await;
            }
        });
        in_time.await.expect("in time");
    }

    #[tokio::test]
    async fn what_is_left_is_read_where_the_client_sends_it() {
        for (is_asked_for, reads, left) in [(true, 0, 0), (true, 1, 0), (false, 0, 3), (false, 1, 0)] {
            let parts = Parts::of(&[Some(b"a"), Some(b"b"), Some(b"c")]);
            let mut body = Watched { body: Some(parts.clone()), is_asked_for, patience: PATIENCE };
            for _ in 0..reads {
                std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.unwrap().unwrap();
            }
            drop(body);
            until(|| Arc::strong_count(&parts.0) == 1).await;
            assert_eq!(parts.left(), left, "{is_asked_for} {reads}");
        }
    }

    #[tokio::test]
    async fn a_client_that_goes_on_for_ever_is_left() {
        let parts = Parts::of(&[Some(b"a"), None]);
        let patience = Duration::from_millis(30);
        drop(Watched { body: Some(parts.clone()), is_asked_for: true, patience });
        until(|| parts.left() == 0).await;
        assert_eq!(Arc::strong_count(&parts.0), 2, "more is waited for");
        until(|| Arc::strong_count(&parts.0) == 1).await;
    }
}
