// The farm's events on a WebSocket: resumed by their number after every break, so that none is missed.

const BAR = document.getElementById("link");
const RETRY_MS = [250, 500, 1000, 2000, 4000];

/**
 * Call handle(event) for each event after the one that the page was made at. query: more parameters of /api/v1/events.
 * onResume() is called when a connection stands again after a break. Returns a function that ends it.
 */
export function follow(handle, { query = {}, after = Number(document.documentElement.dataset.event), onResume = () => {} } = {}) {
  let socket = null, failures = 0, ended = false, brokenSince = null, counter = null, caught = 0, last = after;

  function connect() {
    const url = new URL("/api/v1/events", location.href);
    url.protocol = url.protocol.replace("http", "ws");
    for (const [name, value] of Object.entries({ ...query, after: last })) url.searchParams.set(name, value);
    socket = new WebSocket(url);
    socket.onopen = () => {
      failures = 0;
      if (brokenSince !== null) {
        caught = 0;
        healed();
        onResume();
      }
    };
    socket.onmessage = (message) => {
      const event = JSON.parse(message.data);
      if (event.id !== null && event.id !== undefined) {
        if (event.id > last) caught += event.id - last;
        last = Math.max(last, event.id);
      }
      handle(event);
    };
    socket.onclose = () => {
      if (ended) return;
      broken();
      const pause = RETRY_MS[Math.min(failures++, RETRY_MS.length - 1)];
      setTimeout(connect, pause * (0.75 + Math.random() / 2)); // else all pages come back at once
    };
  }

  function broken() {
    if (brokenSince !== null) return;
    brokenSince = Date.now();
    const tell = () => {
      const seconds = Math.round((Date.now() - brokenSince) / 1000);
      if (seconds < 1) return; // a blink is not worth a word
      BAR.className = "";
      BAR.hidden = false;
      BAR.textContent = `no connection to the master for ${seconds} s; trying again`;
    };
    counter = setInterval(tell, 1000);
  }

  function healed() {
    clearInterval(counter);
    const shown = !BAR.hidden;
    brokenSince = null;
    if (!shown) return;
    setTimeout(() => {
      if (brokenSince !== null) return;
      BAR.className = "well";
      BAR.textContent = `connected again, caught up ${caught} ${caught === 1 ? "event" : "events"}`;
      setTimeout(() => { if (brokenSince === null) BAR.hidden = true; }, 4000);
    }, 600); // what was missed arrives meanwhile
  }

  // A page that is left is no broken connection.
  addEventListener("pagehide", () => { ended = true; socket?.close(); });
  addEventListener("pageshow", (event) => { if (event.persisted) { ended = false; connect(); } });
  connect();
  return () => { ended = true; socket?.close(); };
}

/** handle(items) with all that was given since the last frame, at most once a frame and only while the page is seen. */
export function perFrame(handle) {
  let waiting = [];
  return (item) => {
    waiting.push(item);
    if (waiting.length > 1) return;
    requestAnimationFrame(() => {
      const items = waiting;
      waiting = [];
      handle(items);
    });
  };
}
