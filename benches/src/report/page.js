// Shows the values under the pointer. The points were placed by the program that wrote this page.
(function () {
  "use strict";
  var tip = document.getElementById("tip");
  function micros(us) {
    if (us <= 0) return "0";
    if (us < 1000) return us.toFixed(1) + " µs";
    if (us < 1e6) return (us / 1e3).toFixed(us < 1e4 ? 2 : 1) + " ms";
    return (us / 1e6).toFixed(2) + " s";
  }
  function count(n) { return Math.round(n).toLocaleString("en-US"); }
  function bytes(n) { return n >= 1e9 ? (n / 1e9).toFixed(2) + " GB/s" : (n / 1e6).toFixed(1) + " MB/s"; }
  var write = { us: micros, count: count, bytes: bytes };
  function place(kind, x) {
    if (kind === "seconds") return "second " + Math.round(x * 10) / 10;
    var p = 100 - 100 / Math.pow(10, x);
    var digits = Math.max(0, Math.min(6, Math.ceil(x) - 1));
    return "p" + p.toFixed(digits + 1).replace(/\.?0+$/, "");
  }
  JSON.parse(document.getElementById("data").textContent).forEach(function (chart) {
    var svg = document.getElementById(chart.id);
    if (!svg) return;
    var probe = svg.querySelector(".probe"), cursor = svg.querySelector(".cursor"), glass = svg.querySelector(".glass");
    var dots = chart.series.map(function (series) {
      var dot = document.createElementNS("http://www.w3.org/2000/svg", "circle");
      dot.setAttribute("r", 4.5);
      dot.setAttribute("class", "dot " + series.class);
      probe.appendChild(dot);
      return dot;
    });
    glass.addEventListener("pointermove", function (event) {
      var box = svg.getBoundingClientRect();
      var x = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
      var anchor = null;
      tip.textContent = "";
      var head = document.createElement("b");
      tip.appendChild(head);
      chart.series.forEach(function (series, i) {
        var best = null;
        series.points.forEach(function (point) {
          if (!best || Math.abs(point[0] - x) < Math.abs(best[0] - x)) best = point;
        });
        dots[i].setAttribute("visibility", best ? "inherit" : "hidden");
        if (!best) return;
        if (!anchor || Math.abs(best[0] - x) < Math.abs(anchor[0] - x)) anchor = best;
        dots[i].setAttribute("cx", best[0]);
        dots[i].setAttribute("cy", best[1]);
        var line = document.createElement("div"), mark = document.createElement("i");
        mark.className = series.class;
        line.appendChild(mark);
        line.appendChild(document.createTextNode(series.name + "  " + write[chart.y](best[3])));
        tip.appendChild(line);
      });
      if (!anchor) return;
      head.textContent = place(chart.x, anchor[2]);
      cursor.setAttribute("x1", anchor[0]);
      cursor.setAttribute("x2", anchor[0]);
      probe.setAttribute("visibility", "visible");
      tip.style.display = "block";
      var left = event.clientX + 16;
      if (left + tip.offsetWidth > window.innerWidth - 8) left = event.clientX - tip.offsetWidth - 16;
      tip.style.left = left + "px";
      tip.style.top = event.clientY + 14 + "px";
    });
    glass.addEventListener("pointerleave", function () {
      probe.setAttribute("visibility", "hidden");
      tip.style.display = "none";
    });
  });
})();
