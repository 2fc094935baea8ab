//! ONNX files taken apart into protobuf fields, changed, and put together again with lengths that fit; and changed as
//! plain bytes, with lengths that do not.

/// A generator of numbers: splitmix64 (Steele, Lea, Flood 2014). The same seed gives the same file.
pub(crate) struct Rng(pub u64);

impl Rng {
    /// 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number under `n`; 0 where `n` is 0.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    /// One of them.
    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// What the messages are called here, and which fields are messages. Fields that are not listed are left as bytes.
const MESSAGES: &[(char, u32, char)] = &[
    ('M', 7, 'G'),
    ('M', 8, 'O'),
    ('M', 25, 'F'),
    ('F', 7, 'N'),
    ('F', 9, 'O'),
    ('F', 11, 'A'),
    ('G', 1, 'N'),
    ('G', 5, 'T'),
    ('G', 11, 'V'),
    ('G', 12, 'V'),
    ('G', 13, 'V'),
    ('N', 5, 'A'),
    ('A', 5, 'T'),
    ('A', 6, 'G'),
    ('T', 13, 'E'),
    ('V', 2, 'Y'),
    ('Y', 1, 'Z'),
    ('Z', 2, 'S'),
    ('S', 1, 'D'),
];

/// The value of a field.
#[derive(Clone)]
enum Part {
    Varint(u64),
    /// Four or eight bytes.
    Fixed(Vec<u8>),
    Bytes(Vec<u8>),
    Message(Vec<Field>),
}

/// A field of a message.
#[derive(Clone)]
struct Field {
    tag: u32,
    part: Part,
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(count)?;
    *bytes = rest;
    Some(taken)
}

fn parse(kind: char, mut bytes: &[u8]) -> Option<Vec<Field>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let tag = u32::try_from(key >> 3).ok()?;
        let part = match key & 7 {
            0 => Part::Varint(varint(&mut bytes)?),
            1 => Part::Fixed(take(&mut bytes, 8)?.to_vec()),
            5 => Part::Fixed(take(&mut bytes, 4)?.to_vec()),
            2 => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                let inner = take(&mut bytes, length)?;
                let child = MESSAGES.iter().find(|(k, t, _)| *k == kind && *t == tag).map(|m| m.2);
                match child.and_then(|child| parse(child, inner)) {
                    Some(fields) => Part::Message(fields),
                    None => Part::Bytes(inner.to_vec()),
                }
            }
            _ => return None,
        };
        fields.push(Field { tag, part });
    }
    Some(fields)
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn write(out: &mut Vec<u8>, fields: &[Field]) {
    for field in fields {
        let key = u64::from(field.tag) << 3;
        match &field.part {
            Part::Varint(value) => {
                put_varint(out, key);
                put_varint(out, *value);
            }
            Part::Fixed(bytes) => {
                put_varint(out, key | if bytes.len() == 8 { 1 } else { 5 });
                out.extend_from_slice(bytes);
            }
            Part::Bytes(bytes) => {
                put_varint(out, key | 2);
                put_varint(out, bytes.len() as u64);
                out.extend_from_slice(bytes);
            }
            Part::Message(fields) => {
                let mut inner = Vec::new();
                write(&mut inner, fields);
                put_varint(out, key | 2);
                put_varint(out, inner.len() as u64);
                out.append(&mut inner);
            }
        }
    }
}

fn count(fields: &[Field]) -> usize {
    let inner = |f: &Field| if let Part::Message(fields) = &f.part { count(fields) } else { 0 };
    fields.len() + fields.iter().map(inner).sum::<usize>()
}

/// Calls `change` on the list that holds field `index`, in the order of the file, and its place there.
fn at<R>(
    fields: &mut Vec<Field>,
    index: &mut usize,
    change: &mut dyn FnMut(&mut Vec<Field>, usize) -> R,
) -> Option<R> {
    for i in 0..fields.len() {
        if *index == 0 {
            return Some(change(fields, i));
        }
        *index -= 1;
        if let Part::Message(inner) = &mut fields[i].part
            && let Some(done) = at(inner, index, change)
        {
            return Some(done);
        }
    }
    None
}

/// Numbers at which something tips over.
const NUMBERS: &[i64] = &[
    0,
    1,
    -1,
    2,
    -2,
    3,
    4,
    5,
    7,
    8,
    16,
    -16,
    31,
    32,
    33,
    64,
    100,
    255,
    256,
    1000,
    4096,
    65_535,
    1 << 20,
    1 << 24,
    1 << 28,
    (1 << 31) - 1,
    1 << 31,
    1 << 32,
    -(1 << 31),
    1 << 40,
    1 << 53,
    1 << 61,
    1 << 62,
    i64::MAX,
    i64::MAX - 1,
    i64::MIN,
    i64::MIN + 1,
];

fn change(fields: &mut Vec<Field>, i: usize, rng: &mut Rng, texts: &[Vec<u8>], names: &[String]) {
    match rng.below(12) {
        0 => {
            fields.remove(i);
            return;
        }
        1 => {
            let (times, copy) = (1 + rng.below(3), fields[i].clone());
            for _ in 0..times {
                fields.insert(i, copy.clone());
            }
            return;
        }
        2 => {
            let j = rng.below(fields.len());
            fields.swap(i, j);
            return;
        }
        _ => {}
    }
    match &mut fields[i].part {
        Part::Varint(value) => {
            *value = match rng.below(3) {
                0 => value.wrapping_add(rng.pick(&[1, u64::MAX])),
                1 => rng.below(24) as u64,
                _ => rng.pick(NUMBERS) as u64,
            }
        }
        Part::Fixed(bytes) => match rng.below(3) {
            0 => bytes.fill(0xff),
            1 => bytes.fill(0),
            _ => bytes.iter_mut().for_each(|b| *b = rng.next() as u8),
        },
        // Short data are shapes, axes and the like.
        Part::Bytes(bytes) if !bytes.is_empty() && bytes.len() % 8 == 0 && rng.below(2) == 0 => {
            let word = rng.below(bytes.len() / 8) * 8;
            bytes[word..word + 8].copy_from_slice(&rng.pick(NUMBERS).to_le_bytes());
        }
        Part::Bytes(bytes) => match rng.below(6) {
            0 if !texts.is_empty() => bytes.clone_from(&texts[rng.below(texts.len())]),
            1 | 2 if !names.is_empty() => *bytes = names[rng.below(names.len())].clone().into_bytes(),
            3 => bytes.truncate(rng.below(bytes.len())),
            4 => bytes.extend_from_within(..),
            _ if !bytes.is_empty() => {
                let at = rng.below(bytes.len());
                bytes[at] = rng.next() as u8;
            }
            _ => bytes.push(b'x'),
        },
        Part::Message(inner) => match inner.len() {
            0 => inner
                .push(Field { tag: 1 + rng.below(14) as u32, part: Part::Varint(rng.pick(NUMBERS) as u64) }),
            n => {
                let j = rng.below(n);
                change(inner, j, rng, texts, names);
            }
        },
    }
}

fn texts_of(fields: &[Field], all: &mut Vec<Vec<u8>>) {
    for field in fields {
        match &field.part {
            Part::Bytes(bytes) if bytes.len() < 64 => all.push(bytes.clone()),
            Part::Message(inner) => texts_of(inner, all),
            _ => {}
        }
    }
}

/// A file like `seed`, changed in a few places. `names` are texts to put in: operators, say.
pub(crate) fn mutated(seed: &[u8], rng: &mut Rng, names: &[String]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(seed.len() + 64);
    match parse('M', seed).filter(|_| rng.below(5) > 0) {
        Some(mut fields) => {
            let mut texts = Vec::new();
            texts_of(&fields, &mut texts);
            for _ in 0..1 + rng.below(4) {
                let mut index = rng.below(count(&fields));
                at(&mut fields, &mut index, &mut |fields, i| change(fields, i, rng, &texts, names));
            }
            write(&mut bytes, &fields);
            if rng.below(10) > 0 {
                return bytes;
            }
        }
        None => bytes.extend_from_slice(seed),
    }
    for _ in 0..1 + rng.below(3) {
        damage(&mut bytes, rng);
    }
    bytes
}

/// Changes bytes whatever they mean.
pub(crate) fn damage(bytes: &mut Vec<u8>, rng: &mut Rng) {
    if bytes.is_empty() {
        return;
    }
    let length = bytes.len();
    // What is not data stands at both ends of most files.
    let place = |rng: &mut Rng| match rng.below(3) {
        0 => rng.below(length.min(2048)),
        1 => length - 1 - rng.below(length.min(2048)),
        _ => rng.below(length),
    };
    let from = place(rng);
    let span = (1 + rng.below(64)).min(length - from);
    match rng.below(6) {
        0 => bytes[from] ^= 1 << rng.below(8),
        1 => bytes[from] = rng.next() as u8,
        2 => bytes.truncate(from),
        3 => drop(bytes.drain(from..from + span)),
        4 => {
            let copy = bytes[from..from + span].to_vec();
            let to = place(rng);
            bytes.splice(to..to, copy);
        }
        // A length or a number becomes huge.
        _ => {
            let mut huge = Vec::new();
            put_varint(&mut huge, rng.pick(NUMBERS) as u64);
            bytes.splice(from..from + 1, huge);
        }
    }
}
