// Sprite sheets, fetched and decoded ahead, so that the next pair is on screen without waiting.

const RETRY_MS = 1000;
const DRAWN_MS = 150; // to ask again for a clip that is being drawn; later less often

export class Sheets {
  #bitmaps = new Map(); // clip id -> { promise, bitmap }

  /** Starts to load the sheets of a pair; resolves when both are decoded. */
  load(pair) {
    return Promise.all([this.#one(pair.left), this.#one(pair.right)]);
  }

  /** The decoded sheets of a pair, or null while one is still under way. */
  ready(pair) {
    const both = [pair.left, pair.right].map((clip) => this.#bitmaps.get(clip.id)?.bitmap);
    return both.every(Boolean) ? both : null;
  }

  /** Frees every sheet that no pair of these needs: one decoded sheet may take 50 MB. */
  keepOnly(pairs) {
    const wanted = new Set(pairs.flatMap((pair) => [pair.left.id, pair.right.id]));
    for (const [id, entry] of this.#bitmaps) {
      if (wanted.has(id)) continue;
      this.#bitmaps.delete(id);
      entry.unwanted = true;
      entry.bitmap?.close();
    }
  }

  #one(clip) {
    const known = this.#bitmaps.get(clip.id);
    if (known) return known.promise;
    const entry = { bitmap: null, unwanted: false, promise: null };
    entry.promise = fetchBitmap(clip, () => entry.unwanted).then((bitmap) => {
      if (entry.unwanted) bitmap?.close();
      else entry.bitmap = bitmap;
      return entry.bitmap;
    });
    this.#bitmaps.set(clip.id, entry);
    return entry.promise;
  }
}

/** Tries until the sheet is there, as the server may be away for a while; null once nobody wants it. */
async function fetchBitmap(clip, unwanted) {
  for (let tries = 1; !unwanted(); tries++) {
    let wait = RETRY_MS;
    try {
      if (!clip.url) return await blank(clip);
      const answer = await fetch(clip.url);
      if (answer.status === 204) wait = Math.min(RETRY_MS, DRAWN_MS * 1.1 ** tries);
      else if (answer.ok) return await createImageBitmap(await answer.blob());
      if (answer.status === 404) return await blank(clip);
    } catch {
      // no connection: try again
    }
    await new Promise((resolve) => setTimeout(resolve, wait));
  }
  return null;
}

/** What stands in for a clip without a picture: one empty sheet; the person can still say "can't tell". */
function blank(clip) {
  const sheet = new OffscreenCanvas(clip.width * clip.columns, clip.height * Math.ceil(clip.frames / clip.columns));
  sheet.getContext("2d");
  return createImageBitmap(sheet);
}
