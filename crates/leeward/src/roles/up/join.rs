//! A host joins: it shows a single-use registration key and a signing request, and gets a
//! certificate that speaks for it alone.

use super::listener::Doors;
use crate::roles::session::{FrameReader, FrameWriter, SessionError};
use leeward_control::registration::JoinRequest;
use leeward_model::{Code, Problem};
use leeward_wire::data::{DataMessage, JoinAnswer};
use std::{sync::Arc, time::Duration};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::server::TlsStream;

/// How long a joining host may take for its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves one joining host.
pub async fn serve(doors: &Arc<Doors>, stream: TlsStream<TcpStream>) {
    let (read, write) = tokio::io::split(stream);
    let (mut reader, mut writer) = (FrameReader::new(read), FrameWriter::new(write));
    let request = match timeout(REQUEST_TIMEOUT, reader.message(REQUEST_TIMEOUT)).await {
        Ok(Ok(DataMessage::JoinRequest(request))) => request,
        Ok(Err(SessionError::Closed)) => return,
        _ => {
            tracing::warn!("a joining host sent something else than its request");
            return;
        }
    };
    let answer = match admit(doors, request).await {
        Ok(answer) => DataMessage::JoinAnswer(Box::new(answer)),
        Err(problem) => {
            tracing::warn!(code = %problem.code, "a host was not admitted: {}", problem.what);
            DataMessage::Refused(problem)
        }
    };
    // A host that broke off meanwhile needs a new key: this one is used up.
    let _ = writer.message(&answer).await;
    writer.close().await;
}

async fn admit(
    doors: &Arc<Doors>,
    request: leeward_wire::data::JoinRequest,
) -> Result<JoinAnswer, Problem> {
    let join = JoinRequest { name: request.host_name, data_address: None };
    let admitted = doors.control.registration_key_redeem(&request.registration_key, join).await;
    let admitted = admitted.map_err(|error| *error.problem)?;
    let certificate = doors.authority.issue_host(&request.csr_pem, admitted.host);
    let certificate_pem = certificate.map_err(|error| {
        Code::BAD_REQUEST.because("the host's signing request was refused", error.to_string())
    })?;
    tracing::info!(host = %admitted.host, fabric = %admitted.fabric_name, "a host joined");
    Ok(JoinAnswer {
        certificate_pem,
        ca_pem: doors.authority.ca_pem().to_owned(),
        host: admitted.host,
        fabric: admitted.fabric_name,
    })
}
