// Videos that play together: one clock, which every video follows. They begin anew when the longest has ended; a
// shorter one holds its last frame until then.

const HOLD_SECONDS = 0.8; // the last frames stay a moment
const LARGEST_TICK = 0.1; // seconds; after a pause of the browser they go on where they were
const AHEAD = 0.08; // seconds by which a video may be ahead of the clock before it waits
const LEAD = 0.1; // seconds by which the clock may be ahead of the slowest video before it waits
const LOST = 0.4; // seconds by which a video is so far off that it jumps
const SETTLE_SECONDS = 1; // at most this long the clock waits for videos that jump

const calm = matchMedia("(prefers-reduced-motion: reduce)");

export class Together {
  #videos = new Set();
  #awake = false;
  #ticking = false;
  #before = null;
  #held = 0;
  #settling = 0;
  #onTick;

  playing = !calm.matches;
  speed = 1;
  time = 0;

  /** onTick(time) is called at every frame while they play, and after a jump. */
  constructor(onTick) {
    this.#onTick = onTick;
  }

  /** Of the longest video there is, in seconds. */
  get length() {
    return Math.max(0, ...this.#known().map((video) => video.duration));
  }

  add(video) {
    this.#videos.add(video);
    video.muted = true;
    if (!this.playing) this.#place(video);
    this.#run();
  }

  remove(video) {
    this.#videos.delete(video);
    video.pause();
  }

  play() {
    this.playing = true;
    if (this.time >= this.length - 0.05) this.time = 0;
    this.seek(this.time);
  }

  pause() {
    this.playing = false;
    for (const video of this.#videos) video.pause();
  }

  /** Every video to that moment. */
  seek(time) {
    this.time = Math.min(Math.max(time, 0), this.length);
    this.#held = 0;
    this.#settling = SETTLE_SECONDS;
    for (const video of this.#known()) this.#place(video);
    this.#onTick(this.time);
  }

  wake() {
    this.#awake = true;
    this.#run();
  }

  #run() {
    if (this.#ticking || !this.#awake || !this.#videos.size) return;
    this.#ticking = true;
    this.#before = null;
    requestAnimationFrame((now) => this.#tick(now));
  }

  /** Nothing of it is on screen. */
  sleep() {
    this.#awake = false;
    for (const video of this.#videos) video.pause();
  }

  #known() {
    return [...this.#videos].filter((video) => video.duration > 0);
  }

  #place(video) {
    const put = () => seekTo(video, Math.min(this.time, video.duration));
    if (video.duration > 0) put();
    else video.addEventListener("loadedmetadata", put, { once: true });
  }

  #tick(now) {
    this.#ticking = this.#awake && this.#videos.size > 0;
    if (!this.#ticking) return;
    requestAnimationFrame((next) => this.#tick(next));
    const passed = this.#before === null ? 0 : Math.min((now - this.#before) / 1000, LARGEST_TICK);
    this.#before = now;
    const videos = this.#known();
    if (!this.playing || !videos.length) return;
    this.#settling = videos.some((video) => video.seeking) ? this.#settling - passed : 0;
    if (this.#settling > 0) return; // so that they leave together
    this.#advance(passed, videos);
    for (const video of videos) this.#follow(video);
    this.#onTick(this.time);
  }

  #advance(passed, videos) {
    const on = videos.filter((v) => !v.ended && !v.seeking && v.readyState >= 3 && this.time < v.duration);
    const slowest = Math.min(...on.map((video) => video.currentTime)) + LEAD;
    this.time = Math.min(this.time + passed * this.speed, Math.max(slowest, this.time), this.length);
    if (this.time < this.length) return;
    this.#held += passed;
    if (this.#held >= HOLD_SECONDS) this.seek(0);
  }

  /** A video that is a little off plays a little faster or slower; one that is far off jumps. */
  #follow(video) {
    const off = Math.min(this.time, video.duration) - video.currentTime;
    if (video.seeking || (video.ended && this.time >= video.duration)) return;
    if (Math.abs(off) > LOST) seekTo(video, Math.min(this.time, video.duration));
    else if (off < -AHEAD) video.pause();
    else {
      const rate = this.speed * (1 + Math.round(Math.min(Math.max(1.5 * off, -0.4), 0.6) * 20) / 20);
      if (video.playbackRate !== rate) video.playbackRate = rate;
      if (video.paused && !video.ended) video.play().catch(() => {}); // the browser may want a click
    }
  }
}

/** Moves a video; while it is still on its way the newest wish waits, so that dragging does not pile them up. */
export function seekTo(video, time) {
  if (!video.seeking) {
    video.currentTime = time;
    return;
  }
  if (video.wish === undefined || video.wish === null) {
    video.addEventListener(
      "seeked",
      () => {
        const wish = video.wish;
        video.wish = null;
        seekTo(video, wish);
      },
      { once: true },
    );
  }
  video.wish = time;
}

/** Connects a play button and the speeds beside it with what plays together. Returns what paints them. */
export function connectDeck(deck, together) {
  const play = deck.querySelector(".play");
  const paint = () => {
    play.classList.toggle("playing", together.playing);
    play.title = together.playing ? "Pause" : "Play";
    play.setAttribute("aria-label", play.title);
    for (const button of deck.querySelectorAll("[data-speed]")) {
      button.ariaPressed = String(Number(button.dataset.speed) === together.speed);
    }
  };
  deck.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button === play) together.playing ? together.pause() : together.play();
    else together.speed = Number(button.dataset.speed);
    paint();
  });
  paint();
  return paint;
}
