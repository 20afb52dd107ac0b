//! SVCB and HTTPS records (RFC 9460), cut down to what leads nobody past this resolver: which protocols a name speaks.
//! Hints would be addresses without a permit, ECH would hide the name, an alias or another target asks for another name.

use super::wire::rtype;
use hickory_proto::rr::{
    RData,
    rdata::svcb::{SVCB, SvcParamKey, SvcParamValue},
};

/// Records of one answer that are handed on.
pub(super) const MAX_RECORDS: usize = 8;

const MANDATORY: u16 = 0;
const ALPN: u16 = 1;
const NO_DEFAULT_ALPN: u16 = 2;

/// The record, where it is one of the asked type.
pub(super) fn of_type(data: &RData, qtype: u16) -> Option<&SVCB> {
    match (data, qtype) {
        (RData::SVCB(record), rtype::SVCB) => Some(record),
        (RData::HTTPS(record), rtype::HTTPS) => Some(&record.0),
        _ => None,
    }
}

/// AliasMode (RFC 9460, 2.4.2): whatever stands beside such a record is to be ignored.
pub(super) fn is_alias(record: &SVCB) -> bool {
    record.svc_priority == 0
}

/// The data of what is left of a record; `None` where a client would be led elsewhere, or wrong without what is left out.
pub(super) fn sanitised(record: &SVCB) -> Option<Vec<u8>> {
    if is_alias(record) || !record.target_name.is_root() {
        return None;
    }
    let (mut mandatory, mut alpn, mut no_default) = (Vec::new(), Vec::new(), false);
    for (_, value) in &record.svc_params {
        match value {
            SvcParamValue::Mandatory(keys) => {
                for key in &keys.0 {
                    match key {
                        SvcParamKey::Alpn | SvcParamKey::NoDefaultAlpn => {
                            mandatory.extend(u16::from(*key).to_be_bytes());
                        }
                        SvcParamKey::Ipv4Hint | SvcParamKey::Ipv6Hint | SvcParamKey::EchConfigList => {}
                        _ => return None,
                    }
                }
            }
            SvcParamValue::Alpn(ids) => {
                for id in &ids.0 {
                    alpn.push(u8::try_from(id.len()).ok()?);
                    alpn.extend(id.as_bytes());
                }
            }
            SvcParamValue::NoDefaultAlpn => no_default = true,
            // Without it the client would go to the port of the scheme.
            SvcParamValue::Port(_) => return None,
            _ => {}
        }
    }
    // The target is the owner itself.
    let mut octets = [record.svc_priority.to_be_bytes().as_slice(), &[0]].concat();
    let mut put = |key: u16, value: &[u8]| {
        octets.extend(key.to_be_bytes());
        octets.extend((value.len() as u16).to_be_bytes());
        octets.extend(value);
    };
    if !mandatory.is_empty() {
        put(MANDATORY, &mandatory);
    }
    if !alpn.is_empty() {
        put(ALPN, &alpn);
    }
    if no_default {
        put(NO_DEFAULT_ALPN, &[]);
    }
    Some(octets)
}
