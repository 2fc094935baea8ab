//! Zeroed bytes that start on a cache line: tensors, packed weights, the memory of runs. Large ones lie in large pages,
//! where the system has them. Knows nothing of what is stored.

use memmap2::MmapMut;

/// Buffers start on such a boundary: a cache line, and the widest vector register.
const ALIGN: usize = 64;

/// Buffers of so many bytes have pages of their own. Less is soon asked for again, and the allocator keeps it.
const LARGE: usize = 4 << 20;

/// A large page of the most common processors. The first touch of one takes about 100 us, that of each of the 512 pages
/// that it stands for up to 4 (in a virtual machine): a third of the time in which a model of 25 MB is loaded.
const PAGE: usize = 2 << 20;

/// Owned bytes whose address is a multiple of 64.
pub struct Buffer(Place);

enum Place {
    /// A part of a longer vector, from `start` on. A vector of aligned elements would be written with zeros when it is
    /// made; of plain bytes, the system hands out zeros that take no memory until they are written.
    Vector { bytes: Vec<u8>, start: usize },
    /// The first `len` bytes of pages of its own.
    Pages { pages: MmapMut, len: usize },
}

impl Buffer {
    /// `len` zero bytes.
    pub fn zeroed(len: usize) -> Buffer {
        if let Some(pages) = (len >= LARGE).then(|| large_pages(len)).flatten() {
            return Buffer(Place::Pages { pages, len });
        }
        let mut bytes = vec![0u8; len + ALIGN - 1];
        let start = bytes.as_ptr().align_offset(ALIGN);
        bytes.truncate(start + len);
        Buffer(Place::Vector { bytes, start })
    }

    /// Copies of `parts`, one behind the other; each byte is written once.
    pub fn copied(parts: &[&[u8]]) -> Buffer {
        let (mut bytes, start) = room(parts.iter().map(|part| part.len()).sum(), 0);
        parts.iter().for_each(|part| bytes.extend_from_slice(part));
        Buffer(Place::Vector { bytes, start })
    }

    /// The bytes of a vector from `start` on.
    ///
    /// # Errors
    /// The vector, where these do not begin on a boundary.
    pub fn of(bytes: Vec<u8>, start: usize) -> Result<Buffer, Vec<u8>> {
        match bytes.get(start..).is_some_and(|tail| tail.as_ptr().align_offset(ALIGN) == 0) {
            true => Ok(Buffer(Place::Vector { bytes, start })),
            false => Err(bytes),
        }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.0 {
            Place::Vector { bytes, start } => &bytes[*start..],
            Place::Pages { pages, len } => &pages[..*len],
        }
    }

    /// The bytes, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            Place::Vector { bytes, start } => &mut bytes[*start..],
            Place::Pages { pages, len } => &mut pages[..*len],
        }
    }
}

impl Clone for Buffer {
    fn clone(&self) -> Buffer {
        Buffer::copied(&[self.bytes()])
    }
}

/// A vector with room for `len` bytes more, and its length: byte `head` of what is appended is on a boundary.
pub fn room(len: usize, head: usize) -> (Vec<u8>, usize) {
    let mut bytes: Vec<u8> = Vec::with_capacity(len + ALIGN - 1);
    let start = bytes.as_ptr().wrapping_add(head).align_offset(ALIGN);
    bytes.resize(start, 0);
    (bytes, start)
}

/// Pages for `len` bytes, large ones where they are filled.
#[cfg(target_os = "linux")]
fn large_pages(len: usize) -> Option<MmapMut> {
    // Whole pages only are put on a boundary of such.
    let pages = MmapMut::map_anon(len.checked_next_multiple_of(PAGE)?).ok()?;
    // A system that has none gives small ones.
    _ = pages.advise_range(memmap2::Advice::HugePage, 0, len / PAGE * PAGE);
    Some(pages)
}

#[cfg(not(target_os = "linux"))]
fn large_pages(_: usize) -> Option<MmapMut> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_starts_on_a_cache_line() {
        for len in [0, 1, 63, 64, 65, 1000, 1 << 20, LARGE - 1, LARGE, LARGE + 1, LARGE + PAGE] {
            let mut buffer = Buffer::zeroed(len);
            assert!(buffer.bytes() == vec![0; len]);
            buffer.bytes_mut().iter_mut().zip((0..251).cycle()).for_each(|(byte, i)| *byte = i);
            let copy = buffer.clone();
            assert!(copy.bytes() == buffer.bytes(), "{len}");
            for bytes in [buffer.bytes(), copy.bytes()] {
                assert_eq!(bytes.as_ptr() as usize % ALIGN, 0);
            }
        }
    }

    #[test]
    fn a_vector_becomes_a_buffer_where_it_is_aligned() {
        let bytes = vec![7; 200];
        let start = bytes.as_ptr().align_offset(ALIGN);
        assert!(Buffer::of(bytes.clone(), 201).is_err());
        let Ok(buffer) = Buffer::of(bytes, start) else { panic!("it starts on a boundary") };
        assert_eq!(buffer.bytes(), vec![7; 200 - start]);
        let bytes = vec![7; 200];
        let start = bytes.as_ptr().align_offset(ALIGN) + 1;
        assert_eq!(Buffer::of(bytes, start).err(), Some(vec![7; 200]));
    }
}
